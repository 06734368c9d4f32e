"""mini's ensemble in the real tritonserver, asked with tensors: packing, batching, refusals."""

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from referent.core.bundle import Bundle, load_bundle, load_encoder
from referent.core.kind import Arrays
from referent.core.packing import Bucket, pack
from referent.core.processor import Processor
from referent.kinds import load_processor
from runtime.launcher import TritonServer
from tests.support.load import parts_of
from tests.support.tiny import MODEL_REPOSITORY

SAMPLES = Path(__file__).parents[1] / "samples"
CASES = json.loads((SAMPLES / "samples.json").read_text())


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    with TritonServer(MODEL_REPOSITORY, ["mini"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(MODEL_REPOSITORY, "mini")[0]


@pytest.fixture(scope="module")
def processor(bundle: Bundle) -> Processor:
    return load_processor(MODEL_REPOSITORY, bundle)


def sample(name: str) -> Image.Image:
    return Image.open(SAMPLES / name).convert("RGB")


def tensors(processor: Processor, image: Image.Image, expressions: list[str]) -> Arrays:
    [arrays] = processor.prepare_picture(image, expressions).inferences
    return arrays


def infer(
    client: triton.InferenceServerClient, arrays: dict[str, np.ndarray], model: str = "mini"
) -> tuple[np.ndarray, np.ndarray]:
    result = client.infer(model, as_inputs(arrays), client_timeout=30)
    return result.as_numpy("boxes"), result.as_numpy("scores")


def as_inputs(arrays: dict[str, np.ndarray]) -> list[triton.InferInput]:
    dtypes = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}
    inputs = []
    for name, array in arrays.items():
        entry = triton.InferInput(name, array.shape, dtypes[array.dtype.name])
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    return inputs


def test_packed_expressions_are_answered_as_single_ones(
    client: triton.InferenceServerClient, processor: Processor
) -> None:
    image, expressions = sample(CASES[0]["image"]), list(CASES[0]["objects"])[:4]
    boxes, scores = infer(client, tensors(processor, image, expressions))
    for index, expression in enumerate(expressions):
        alone, alone_score = infer(client, tensors(processor, image, [expression]))
        np.testing.assert_allclose(boxes[0, index], alone[0, 0], atol=1e-4)
        np.testing.assert_allclose(scores[0, index], alone_score[0, 0], atol=1e-4)


def test_a_larger_bucket_changes_nothing(
    client: triton.InferenceServerClient, processor: Processor, bundle: Bundle
) -> None:
    expression = next(iter(CASES[0]["objects"]))
    arrays = tensors(processor, sample(CASES[0]["image"]), [expression])
    answers = []
    encoder = load_encoder(MODEL_REPOSITORY, bundle)
    suffix = encoder.suffix(expression)
    for bucket in bundle.buckets:
        row = pack(encoder.prefix, [suffix], [Bucket(*bucket)], bundle.prompt.pad_token_id)[0]
        packed = {name: getattr(row, name)[None] for name in ("input_ids", "segment_ids", "loc_positions")}
        answers.append(infer(client, arrays | packed)[0][0, 0])
    np.testing.assert_allclose(answers, [answers[0]] * len(answers), atol=1e-5)


def test_a_batch_is_answered_as_its_rows_alone(client: triton.InferenceServerClient, processor: Processor) -> None:
    rows = [tensors(processor, sample(case["image"]), list(case["objects"])[:1]) for case in CASES[:2]]
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    boxes, scores = infer(client, batch)
    for index, row in enumerate(rows):
        alone, alone_score = infer(client, row)
        np.testing.assert_allclose(boxes[index], alone[0], atol=1e-5)
        np.testing.assert_allclose(scores[index], alone_score[0], atol=1e-5)


def counts(client: triton.InferenceServerClient, model: str) -> tuple[int, int]:
    """(requests, executions) of the model's current version."""
    stats = client.get_inference_statistics(model).model_stats[-1]
    return stats.inference_count, stats.execution_count


def test_concurrent_requests_of_mixed_lengths_are_batched(
    client: triton.InferenceServerClient, server: TritonServer, processor: Processor
) -> None:
    long = "the very small red apple that is on the left of everything else in this picture"
    requests = [
        tensors(processor, sample(CASES[i % len(CASES)]["image"]), [("dog", "the king on the left", long)[i % 3]])
        for i in range(48)
    ]
    expected = [infer(client, arrays)[0] for arrays in requests]
    models = parts_of(client, "mini")
    before = {model: counts(client, model) for model in models}

    def send(arrays: dict[str, np.ndarray]) -> np.ndarray:
        with triton.InferenceServerClient(server.grpc_url) as own:
            return infer(own, arrays)[0]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, requests))
    for answer, alone in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, alone, atol=1e-5)
    for model in models[:2]:
        inferences, executions = (now - then for now, then in zip(counts(client, model), before[model], strict=True))
        assert 0 < executions < inferences, model  # Triton counts a request after it has answered it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((1, 10, 10, 3), np.uint8)}, "unexpected shape"),
        ({"image": np.zeros((1, 288, 288, 3), np.float32)}, "data-type|datatype|data type"),
        ({"input_ids": np.zeros((1, 4), np.int64), "segment_ids": np.zeros((1, 7), np.int64)}, ""),
    ],
    ids=["shape", "dtype", "unequal lengths"],
)
def test_wrong_tensors_straight_to_triton_are_refused_and_the_next_is_answered(
    client: triton.InferenceServerClient, processor: Processor, change: dict, message: str
) -> None:
    good = tensors(processor, sample(CASES[0]["image"]), ["dog"])
    before, _ = infer(client, good)
    with pytest.raises(InferenceServerException, match=message or None) as error:
        infer(client, good | change)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    after, _ = infer(client, good)
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_wild_ids_cannot_fail_their_batch_mates(client: triton.InferenceServerClient, processor: Processor) -> None:
    good = tensors(processor, sample(CASES[0]["image"]), ["dog"])
    wild = good | {
        "input_ids": np.full_like(good["input_ids"], 10**12),
        "loc_positions": np.full_like(good["loc_positions"], -(10**12)),
    }
    boxes, _ = infer(client, {name: np.concatenate([good[name], wild[name]]) for name in good})
    assert np.isfinite(boxes).all()
    np.testing.assert_allclose(boxes[0], infer(client, good)[0][0], atol=1e-5)


def test_an_unknown_model_is_refused(client: triton.InferenceServerClient, processor: Processor) -> None:
    good = tensors(processor, sample(CASES[0]["image"]), ["dog"])
    with pytest.raises(InferenceServerException, match="unknown model"):
        infer(client, good, model="other")
