"""PaliGemma-2 and point-vlm, imported, exported, and asked through the real Triton and the gateway."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.build import export
from referent.client.http import Client
from referent.core.bundle import load_bundle
from referent.core.contract import IMAGE
from referent.generation.engine import DecoderRow, Engine, WrittenAnswer
from referent.generation.onnx import OnnxDecoder
from referent.generation.outputs import outputs_of
from referent.generation.questions import load_tokenizer
from referent.kinds import load_processor
from referent.modeling.checkpoint import load_checkpoint
from referent.modeling.importers.paligemma import import_paligemma, import_point_vlm
from runtime.launcher import TritonServer
from tests.support.load import gateway

MOST = {"points": 5, "detections": 3}  # instances that the recorded answers could have


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "pv"


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict:
    return json.loads((golden / "constrained.json").read_text())


@pytest.fixture(scope="module")
def checkpoints(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, base = tmp_path_factory.mktemp("checkpoints"), golden / "paligemma2-tiny-pt-224"
    import_point_vlm(golden / "point-vlm-tiny", base, folder / "points")
    import_paligemma(base, folder / "detections")
    file = folder / "detections" / "referent.json"
    spec = json.loads(file.read_text())
    spec["generation"]["grammar"]["none"] = False  # as the recorded answers were written
    file.write_text(json.dumps(spec))
    return {name: folder / name for name in MOST}


@pytest.fixture(scope="module")
def repository(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    for name, checkpoint in checkpoints.items():
        export(checkpoint, name, repository)
    return repository


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[Client]:
    with (
        TritonServer(repository) as server,
        gateway(repository, server.grpc_url, default_model="points") as url,
        Client(url) as client,
    ):
        yield client


@pytest.mark.parametrize("name", MOST)
def test_served_answers_are_those_of_its_own_code(client: Client, golden: Path, recorded: dict, name: str) -> None:
    for case in recorded[name]:
        image, label, wanted = golden / case["image"], case["label"], case["answer"]
        (result,) = client.ground(image, label, model=name, max_instances=MOST[name]).results
        assert (result.text, result.finish_reason) == (wanted["text"], "stop")
        found = [mark for mark in wanted["found"] if not mark.get("degenerate")]
        found.sort(key=lambda mark: -mark["score"])
        assert [referent.score for referent in result.referents] == pytest.approx(
            [mark["score"] for mark in found], rel=2e-4, abs=1e-6
        )
        for referent, mark in zip(result.referents, found, strict=True):
            assert referent.point_xy == pytest.approx(mark.get("point_px"), abs=1e-3)
            assert referent.box_xyxy == pytest.approx(mark.get("box_px"), abs=1e-3)
        assert result.present == bool(found)
        if not found:
            assert result.score == pytest.approx(wanted["score"], rel=2e-4, abs=1e-6)


def test_expressions_of_one_image_are_answered_as_alone(client: Client, golden: Path, recorded: dict) -> None:
    """Each has a row of its own, since the whole prompt sees itself."""
    labels = [case["label"] for case in recorded["points"]] * 2
    image = golden / "landscape.png"
    together = client.ground(image, labels, model="points", max_instances=5).results
    with ThreadPoolExecutor(4) as pool:
        alone = list(
            pool.map(lambda label: client.ground(image, label, model="points", max_instances=5).results[0], labels)
        )
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.text == theirs.text
        assert ours.score == pytest.approx(theirs.score, rel=2e-4)


def test_the_models_say_what_they_give(client: Client) -> None:
    entries = {model.name: (model.kind, model.gives, model.several) for model in client.models()}
    assert entries == {"points": ("generator", "points", True), "detections": ("generator", "boxes", True)}


def test_detections_are_in_pixels_of_the_image(
    repository: Path, checkpoints: dict[str, Path], golden: Path, recorded: dict
) -> None:
    """The recorded grammar that forbids degenerate boxes, with the published graph."""
    bundle, _ = load_bundle(repository, "detections")
    processor, model = load_processor(repository, bundle), load_checkpoint(checkpoints["detections"])[0]
    file = repository / "detections_generator" / "1" / "model.onnx"
    decoder = OnnxDecoder(file, slots=1, columns=512, parameters={"intra_op_thread_count": "1"})
    tokenizer = load_tokenizer(processor.encoder.tokenizer_json, decoder.vocabulary, bundle.generation.eos_token_id)
    for case in recorded["detections"]:
        picture = Image.open(golden / case["image"]).convert("RGB")
        prepared = processor.prepare_picture(picture, [case["label"]])
        features = model.encode_image(torch.from_numpy(prepared.inferences[0][IMAGE.name])).detach().numpy()
        answer = WrittenAnswer(tokenizer, case["probe"]["grammar"], [])
        ids = processor.encoder.prefix + processor.encoder.suffix(case["label"])
        row = DecoderRow(ids, features, [answer], bidirectional=True)
        engine = Engine(decoder)
        engine.admit(row)
        while engine.active:
            engine.step()
        (result,) = processor.answers(prepared, [outputs_of([row], bundle.generation.grammar)])
        assert result.text == case["probe"]["text"]
        found = sorted(case["probe"]["found"], key=lambda mark: -mark["score"])
        assert len(result.referents) == len(found)
        for referent, mark in zip(result.referents, found, strict=True):
            np.testing.assert_allclose(referent.box_xyxy, mark["box_px"], atol=1e-3)
            assert referent.score == pytest.approx(mark["score"], rel=2e-4, abs=1e-6)
