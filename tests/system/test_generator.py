"""Models that answer in text, through the real tritonserver and the real gateway."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import copytree

import httpx
import numpy as np
import psutil
import pytest
from onnxruntime import InferenceSession
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.build import export
from export.publish import publish, republish
from referent.client.http import Client
from referent.core.bundle import load_bundle
from referent.core.grammar import BoxGrammar, PointGrammar
from referent.core.kind import Arrays, Options
from referent.generation.onnx import OnnxDecoder
from referent.kinds import load_processor
from referent.kinds.generator import FINISH_REASONS, MASS, PASSES
from referent.modeling.checkpoint import load_checkpoint_spec
from referent.modeling.grounder import load_grounder
from referent.triton.client import TritonClient
from referent.triton.protocol import TritonBusyError, TritonError, inference_request, own_errors, read_outputs
from runtime.launcher import TritonServer
from tests.support.commands import run
from tests.support.hostile_labels import HOSTILE_LABELS
from tests.support.load import gateway, is_ready, load, process_of, until
from tests.support.recorded import assert_as_recorded
from tests.support.text_model import save_text_checkpoint

EXPRESSIONS = ["red cup", "the cup on the plate", 'a "quoted" <tag> & more', "die Tasse für Käse", "כוס", "👩\u200d👧"]
GRAMMARS = {"words": BoxGrammar(order="cxcywh", lead=" "), "dots": PointGrammar(none=True)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: save_text_checkpoint(folder / name, grammar) for name, grammar in GRAMMARS.items()}


@pytest.fixture(scope="module")
def repository(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models; of "dots" only one row is written at a time, and one request may wait."""
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    export(checkpoints["words"], "words", repository)
    export(checkpoints["dots"], "dots", repository, max_batch_size=1)

    def let_one_wait(config: ModelConfig) -> None:
        if config.backend == "generator":
            config.parameters["max_waiting"].string_value = "1"

    republish(repository, "dots", "1", repository, let_one_wait)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: TritonServer, repository: Path) -> Iterator[str]:
    with gateway(repository, server.grpc_url, default_model="words") as url:
        yield url


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 90, 3), np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def infer(server: TritonServer, repository: Path, name: str, arrays: Arrays, timeout_s: float = 30) -> Arrays:
    bundle, _ = load_bundle(repository, name)
    with InferenceServerClient(server.grpc_url) as client, own_errors():
        result = client.infer(**inference_request(bundle, arrays, timeout_s), client_timeout=30)
    return read_outputs(bundle, arrays, result)


def arrays_of(repository: Path, name: str, expressions: list[str], options: Options = Options()) -> Arrays:  # noqa: B008
    bundle, _ = load_bundle(repository, name)
    return load_processor(repository, bundle).prepare_picture(picture(), expressions, options).inferences[0]


@pytest.mark.parametrize("name", ["words", "dots"])
def test_the_service_answers_as_pytorch_does(url: str, checkpoints: dict[str, Path], name: str) -> None:
    grounder = load_grounder(checkpoints[name], device="cpu")
    with Client(url) as client:
        for seed in range(3):
            served = client.ground(picture(seed), EXPRESSIONS[: 2 * seed + 2], model=name, max_instances=3).results
            expected = grounder.ground(picture(seed), EXPRESSIONS[: 2 * seed + 2])
            for ours, theirs in zip(served, expected, strict=True):
                assert ours.finish_reason in ("stop", "length")
                assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
                assert ours.expression == theirs.expression
                assert (ours.present, len(ours.referents)) == (theirs.present, len(theirs.referents))
                assert ours.score == pytest.approx(theirs.score, rel=2e-4, abs=1e-6)
                for a, b in zip(ours.referents, theirs.referents, strict=True):
                    assert a.score == pytest.approx(b.score, rel=2e-4, abs=1e-6)
                    assert a.box_xyxy == pytest.approx(b.box_xyxy, abs=1e-4)
                    assert a.point_xy == pytest.approx(b.point_xy, abs=1e-4)


def test_a_model_says_what_it_gives(url: str) -> None:
    with Client(url) as client:
        entries = {model.name: (model.kind, model.gives, model.several) for model in client.models()}
    assert entries == {"words": ("generator", "boxes", False), "dots": ("generator", "points", True)}


def test_json_has_the_text_and_why_it_ended(url: str) -> None:
    body = {"expression": ["the cup"], "model": "dots", "max_instances": 2}
    answer = httpx.post(f"{url}/v1/ground", files={"image": png(picture())}, data=body).raise_for_status().json()
    (result,) = answer["results"]
    assert result["finish_reason"] in ("stop", "length")
    assert result["box_xyxy"] is None
    assert len(result["referents"]) <= 2
    assert result["text"] == "none" or 'alt="the cup"' in result["text"]
    scores = [referent["score"] for referent in result["referents"]]
    assert scores == sorted(scores, reverse=True)


def test_packed_and_batched_answers_are_those_of_single_requests(server: TritonServer, repository: Path) -> None:
    with TritonClient(server.grpc_url, "words", repository) as client:
        single = [client.ground(picture(), text).results[0] for text in EXPRESSIONS]
        packed = client.ground(picture(), EXPRESSIONS).results
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda text: client.ground(picture(), text).results[0], EXPRESSIONS))
    for alone, *others in zip(single, packed, together, strict=True):
        for other in others:
            assert other.text == alone.text
            assert other.score == pytest.approx(alone.score, rel=2e-4)


def test_a_box_takes_twelve_passes_at_most(server: TritonServer, repository: Path) -> None:
    outputs = infer(server, repository, "words", arrays_of(repository, "words", ["the cup", "red", "the plate"]))
    assert outputs[PASSES.name][0, 0] <= 12
    assert (outputs[MASS.name] < 0).all()


def test_every_label_is_answered(url: str) -> None:
    labels = [label for label in HOSTILE_LABELS if label.strip() and label.isprintable() and len(label) < 30]
    with Client(url) as client:
        for label in labels:
            (result,) = client.ground(picture(), label, model="dots", max_instances=64).results
            assert result.finish_reason == "stop"
            assert result.text == "none" or result.text.endswith(("</point>", "</points>"))


def test_a_request_whose_time_is_over_is_dropped_and_the_next_answered(server: TritonServer, repository: Path) -> None:
    arrays = arrays_of(repository, "dots", ["the cup"], Options(max_instances=64))
    with pytest.raises(TimeoutError, match="timeout expired"):
        infer(server, repository, "dots", arrays, timeout_s=0.001)
    assert (infer(server, repository, "dots", arrays)[FINISH_REASONS.name] == 0).all()


def test_a_full_queue_refuses_and_the_next_request_is_answered(server: TritonServer, repository: Path) -> None:
    arrays = arrays_of(repository, "dots", ["the cup"], Options(max_instances=64))

    def ask(_: int) -> str:
        try:
            infer(server, repository, "dots", arrays)
        except TritonBusyError:
            return "busy"
        return "ok"

    with ThreadPoolExecutor(64) as pool:  # all at once: more than are written and wait
        said = set(pool.map(ask, range(64)))
    assert said == {"ok", "busy"}
    assert ask(0) == "ok"


def test_through_the_gateway_a_full_queue_is_429_and_a_passed_deadline_504(url: str) -> None:
    """And the next request is answered."""
    body = {"files": {"image": png(picture())}, "data": {"expression": "the cup", "model": "dots", "max_instances": 12}}

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{url}/v1/ground", **body, timeout=60)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(64)))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.json()["type"], refused.json()["retryable"]) == ("urn:referent:problem:overloaded", True)
    assert int(refused.headers["retry-after"]) >= 1
    for _ in range(20):  # with a third of the time that it takes
        late = httpx.post(f"{url}/v1/ground", **body, headers={"X-Request-Timeout": "0.005"})
        if late.status_code != 408:  # a busy machine: the time was over before the body was there
            break
    assert (late.status_code, late.json()["retryable"]) == (504, True)
    whole = ask(0)
    assert whole.status_code == 200
    stages = dict(part.split(";dur=") for part in whole.headers["server-timing"].split(", "))
    assert 0 < float(stages["prefill"]) + float(stages["generation"]) <= float(stages["inference"])


@pytest.mark.parametrize("fault", ["no expressions", "labels without tokens"])
def test_tensors_that_make_no_sense_are_the_callers_fault(server: TritonServer, repository: Path, fault: str) -> None:
    arrays = arrays_of(repository, "words", ["the cup"])
    if fault == "no expressions":
        arrays["segment_ids"] = np.zeros_like(arrays["segment_ids"])
    else:
        arrays["labels"] = np.repeat(arrays["labels"], 3, axis=1)
    with pytest.raises(TritonError, match="INVALID_ARGUMENT"):
        infer(server, repository, "words", arrays)
    infer(server, repository, "words", arrays_of(repository, "words", ["the cup"]))


def test_triton_tells_what_the_generator_does(server: TritonServer, repository: Path) -> None:
    def metrics() -> dict[str, float]:
        families = text_string_to_metric_families(httpx.get(server.metrics_url).text)
        samples = [sample for family in families for sample in family.samples]
        return {
            sample.name.removeprefix("referent_generator_"): sample.value
            for sample in samples
            if sample.name.startswith("referent_generator_") and sample.labels["model"].startswith("words_generator")
        }

    before = metrics()
    outputs = infer(server, repository, "words", arrays_of(repository, "words", ["the cup"]))
    written = before["passes_total"] + outputs[PASSES.name][0, 0]
    until(lambda: metrics()["passes_total"] >= written)  # the launcher's golden inferences count too
    until(lambda: (metrics()["waiting"], metrics()["active"]) == (0, 0))
    assert metrics()["tokens_total"] > before["tokens_total"]
    assert metrics()["cache_bytes"] > 1e5


def test_a_generator_killed_midway_costs_retries_at_most(server: TritonServer, url: str) -> None:
    """Triton 2.51 itself ends where the stub was killed with a lock in its hands; the launcher starts it again."""

    def stub() -> psutil.Process | None:
        with suppress(psutil.Error):
            children = [child for child in process_of(server).children() if child.status() != psutil.STATUS_ZOMBIE]
            return next((child for child in children if "words_generator" in " ".join(child.cmdline())), None)
        return None

    with load(url) as noted:
        killed = stub()
        assert killed
        killed.kill()
        until(lambda: stub() not in (None, killed))
        until(lambda: is_ready(url))
        noted.more_ok()
    assert noted.counts["lost"] == 0


def test_another_version_takes_over_and_nothing_is_lost(
    url: str, repository: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The version before is unloaded while requests of it are in flight."""
    parts = {}
    for suffix in ("vision_encoder", "generator"):
        parts[suffix] = tmp_path / suffix
        copytree(repository / f"words_{suffix}" / "1", parts[suffix])
    with load(url) as noted:
        publish(
            repository, "words", load_checkpoint_spec(checkpoints["words"]), parts,
            checkpoints["words"] / "tokenizer.json", dtype="fp32", has_scores=False, sizes={"D": 64}, max_batch_size=8,
        )  # fmt: skip
        until(lambda: noted.details["version 2"] > 3)
    assert noted.counts["lost"] == 0
    assert noted.counts["retryable"] == 0


def test_a_client_that_goes_away_leaves_the_next_one_its_answer(url: str) -> None:
    until(lambda: is_ready(url))
    with httpx.Client(base_url=url) as client:
        files = {"image": png(picture())}
        for _ in range(5):
            with pytest.raises(httpx.TimeoutException):
                client.post("/v1/ground", files=files, data={"expression": EXPRESSIONS}, timeout=0.005)
        answer = client.post("/v1/ground", files=files, data={"expression": EXPRESSIONS}).raise_for_status().json()
    assert [result["finish_reason"] for result in answer["results"]] == ["stop"] * len(EXPRESSIONS)


def assert_graph_as_recorded(repository: Path, golden: Path, cases: list[dict]) -> None:
    """The ids and log-probabilities that the published graphs themselves give."""
    bundle, _ = load_bundle(repository, "baseline")
    processor = load_processor(repository, bundle)
    files = {step: repository / f"baseline_{step}" / "1" / "model.onnx" for step in ("vision_encoder", "generator")}
    encoder, features = InferenceSession(files["vision_encoder"]), []
    for case in cases:
        arrays = processor.prepare((golden / case["image"]).read_bytes(), [case["expression"]]).inferences[0]
        features += encoder.run(["image_features"], {"image": arrays["image"]})
    decoder = OnnxDecoder(files["generator"], slots=8, columns=1024)
    assert_as_recorded(decoder, bundle, processor.encoder, features, cases, probes=True)


def test_the_published_baseline_is_served_as_its_own_code_answers(data_folder: Path, tmp_path: Path) -> None:
    golden = data_folder / "golden" / "vg"
    checkpoint, repository = tmp_path / "checkpoint", tmp_path / "model_repository"
    code, _, errors = run("import", "llava", golden / "base-llava-1.5-tiny-hf", "--out", checkpoint)
    assert code == 0, errors
    export(checkpoint, "baseline", repository)
    cases = json.loads((golden / "constrained.json").read_text())["cases"]
    assert_graph_as_recorded(repository, golden, cases)
    with (
        TritonServer(repository) as server,
        gateway(repository, server.grpc_url, default_model="baseline") as url,
        Client(url) as client,
    ):
        for case in cases:
            (result,) = client.ground(golden / case["image"], case["expression"]).results
            wanted = case["answer"]
            (found,) = wanted["found"]
            assert (result.text, result.finish_reason) == (wanted["text"], "stop")
            assert result.score == pytest.approx(wanted["pil_pixels"]["score"], rel=2e-4, abs=1e-6)
            assert result.box_xyxy == pytest.approx(found["box_px"], abs=1e-3)
