"""mini through the real tritonserver and the real gateway: one server for the whole module."""

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gradio_client
import httpx
import numpy as np
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.checks import response_schema_conformance
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    status_code_conformance,
)

from export.build import export
from export.publish import republish
from gateway.app import create_app
from gateway.settings import Settings
from referent.client.http import Client
from referent.commands.demo import sample_scenes
from referent.core.boxes import iou
from referent.core.bundle import BUNDLE_FILE, load_bundle
from referent.core.sources import ImageSource
from referent.data.records import Record
from referent.evaluation.evaluate import join, summary
from referent.evaluation.predictors import ask_checkpoint, ask_service
from referent.modeling.checkpoint import load_checkpoint, load_checkpoint_encoder
from referent.modeling.grounder import HeadGrounder, load_grounder
from referent.triton.client import TritonClient
from runtime.launcher import TritonServer
from tests.support.hostile import CORPUS, MAX_PIXELS, fault_of
from tests.support.load import until
from tests.support.tiny import copy_mini

SAMPLES = Path(__file__).parents[1] / "samples"
CASES = json.loads((SAMPLES / "samples.json").read_text())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A copy of the shipped repository, since a test publishes into it, with the tiny model beside mini."""
    copy = tmp_path_factory.mktemp("served") / "model_repository"
    copy_mini(copy)
    export(tiny_checkpoint, "tiny", copy)
    return copy


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(server: TritonServer, repository: Path) -> Iterator[httpx.Client]:
    """The gateway on a port of its own, once it is ready."""
    settings = Settings(
        triton_url=server.grpc_url,
        model_repository=repository,
        default_model="mini",
        metrics_port=0,
        max_pixels=MAX_PIXELS,
        readiness_interval_s=0.5,
    )
    runner = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=runner.run)
    thread.start()
    until(lambda: runner.started)
    port = runner.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        until(lambda: http.get("/readyz").status_code == 200)
        yield http
    runner.should_exit = True
    thread.join()


def ground(gateway: httpx.Client, name: str, expressions: list[str]) -> dict:
    files = [("image", (name, (SAMPLES / name).read_bytes()))]
    response = gateway.post("/v1/ground", files=files, data={"expression": expressions})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["image"])
def test_the_sample_pictures_are_grounded(gateway: httpx.Client, case: dict) -> None:
    """Scenes of the generator's test stream: shows what the committed weights can do, without a requirement."""
    expected = case["objects"]
    answer = ground(gateway, case["image"], list(expected))
    hits = 0
    for result in answer["results"]:
        x1, y1, x2, y2 = expected[result["expression"]]
        a1, b1, a2, b2 = result["box_xyxy"]
        inside = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
        union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inside
        hits += inside / union >= 0.5
    assert hits >= 0.5 * len(expected)


@pytest.mark.parametrize("size", [(60, 40), (300, 900), (31, 7)], ids=str)
def test_the_gateway_answers_as_pytorch_does(
    gateway: httpx.Client, tiny_checkpoint: Path, size: tuple[int, int]
) -> None:
    """From a checkpoint with its adapter to the HTTP answer, through merge, split, ONNX and Triton, within a pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image, expressions = Image.fromarray(noise), ["the red cup", "blue plate on the left", "cup", "find", "green"]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    answer = gateway.post(
        "/v1/ground",
        files={"image": ("noise.png", buffer.getvalue())},
        data={"expression": expressions, "model": "tiny"},
    ).json()
    model, spec = load_checkpoint(tiny_checkpoint)
    grounder = HeadGrounder(model, spec, load_checkpoint_encoder(tiny_checkpoint, spec))
    for served, local in zip(answer["results"], grounder.ground(image, expressions), strict=True):
        np.testing.assert_allclose(served["box_xyxy"], local.box_xyxy, atol=1.0, err_msg=local.expression)
        assert served["score"] == pytest.approx(local.score, abs=1e-3)


def pictures() -> dict[str, ImageSource]:
    """Of many kinds: a file, one that is decoded in fewer pixels, transparency, orientation, pixels."""
    name = CASES[0]["image"]
    scene = Image.open(SAMPLES / name).convert("RGB")
    width, height = scene.size
    large, clear, turned = io.BytesIO(), io.BytesIO(), io.BytesIO()
    scene.resize((4 * width, 4 * height)).save(large, "JPEG")
    scene.convert("RGBA").rotate(30, expand=True).save(clear, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.save(turned, "JPEG", exif=exif)
    return {
        "file": SAMPLES / name,
        "large": large.getvalue(),
        "transparent": clear.getvalue(),
        "turned": turned.getvalue(),
        "picture": scene,
        "array": np.asarray(scene.resize((31, 77))),
    }


@pytest.mark.parametrize("model", ["mini", "tiny"])
@pytest.mark.parametrize("kind", list(pictures()))
def test_triton_client_answers_as_the_gateway_does(
    gateway: httpx.Client, server: TritonServer, repository: Path, kind: str, model: str
) -> None:
    image, words = pictures()[kind], ["the red cup", "blue plate on the left", "cup", "find", "green"]
    expressions = (words + list(CASES[0]["objects"]) if model == "mini" else words) * 2
    with Client(str(gateway.base_url)) as http, TritonClient(server.grpc_url, model, repository) as grpc:
        served, direct = http.ground(image, expressions, model), grpc.ground(image, expressions)
    assert (direct.model, direct.version, direct.digest) == (served.model, served.version, served.digest)
    assert direct.image == served.image
    for one, other in zip(direct.results, served.results, strict=True):
        assert (one.expression, one.present) == (other.expression, other.present)
        assert one.box_xyxy == pytest.approx(
            other.box_xyxy, rel=0, abs=1e-6 * max(served.image.width, served.image.height)
        )
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_the_demo_shows_and_compares_what_the_service_answers(gateway: httpx.Client) -> None:
    """In a process of its own: importing gradio changes what the gateway's process takes for the type of a file."""
    image, expressions, boxes = sample_scenes()[0]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = str(gateway.base_url)
    command = [
        sys.executable,
        "-m",
        "referent",
        "demo",
        "--url",
        url,
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo, Client(url) as service:
        try:
            assert demo.stdout
            page = demo.stdout.readline().removeprefix("The demo is at ").strip()
            assert "Where in this image is what these words refer to?" in httpx.get(page).text
            asking = gradio_client.Client(page, verbose=False)
            table, *shown = asking.predict(
                gradio_client.handle_file(image), expressions, ["mini", "tiny"], boxes, api_name="/ground"
            )
            with pytest.raises(gradio_client.exceptions.AppError, match="give an image"):
                asking.predict(None, expressions, ["mini"], boxes, api_name="/ground")
        finally:
            demo.terminate()
        answer = service.ground(image, expressions.splitlines(), "mini")
    pictures = [each for each in shown[::2] if each["visible"]]
    assert [each["label"].split()[0] for each in pictures] == ["mini", "tiny"]
    rows = [dict(zip(table["headers"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 2 * len(answer.results)
    for row, result, box in zip(rows, answer.results, boxes.splitlines(), strict=False):
        overlap = iou(np.array(result.box_xyxy), np.array([float(number) for number in box.split(",")]))
        assert (row["model"], row["expression"]) == ("mini", result.expression)
        assert float(row["IoU"]) == pytest.approx(overlap, abs=0.01)


def test_evaluation_of_service_and_checkpoint_agree(gateway: httpx.Client, tiny_checkpoint: Path) -> None:
    records = [
        Record(
            id=f"{case['image']}/{text}", image=case["image"], width=width, height=height, expression=text,
            box_xyxy=(0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height),
        )
        for case in CASES
        for width, height in [Image.open(SAMPLES / case["image"]).size]
        for text in ("the red cup", "the plate on the left", "blue", "the green plate on the right of the cup")
    ]  # fmt: skip
    local = join(records, ask_checkpoint(load_grounder(tiny_checkpoint), records, SAMPLES, images_per_batch=4))
    with Client(str(gateway.base_url)) as service:
        served = join(records, ask_service(service, records, SAMPLES, model="tiny"))
    np.testing.assert_allclose(served.ious, local.ious, atol=1e-3)
    np.testing.assert_allclose(iou(served.boxes_xyxy, local.boxes_xyxy), 1, atol=1e-3)
    assert summary(served)["mean_iou"] == pytest.approx(summary(local)["mean_iou"], abs=1e-3)
    assert local.ious.std() > 0.01  # the control: answers differ from each other by more


def jpeg(size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "gray").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "data", "status"),
    [
        (b"not an image", {"expression": ["dog"]}, 415),
        ((SAMPLES / CASES[0]["image"]).read_bytes()[:5000], {"expression": ["dog"]}, 422),
        (jpeg(), {}, 422),
        (jpeg(), {"expression": ["dog"] * 100}, 422),
        (jpeg(), {"expression": [" "]}, 422),
        (jpeg(), {"expression": ["dog " * 249]}, 422),
        (jpeg(), {"expression": ["dog"], "model": "other"}, 404),
    ],
    ids=["no image", "truncated", "no expression", "100 expressions", "empty", "very long", "unknown model"],
)
def test_bad_requests_get_a_clear_4xx_and_the_next_is_answered(
    gateway: httpx.Client, content: bytes, data: dict, status: int
) -> None:
    response = gateway.post("/v1/ground", files={"image": ("picture", content)}, data=data)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "request_id", "retryable", "stage"} <= set(response.json())
    assert "Traceback" not in response.text
    assert len(ground(gateway, CASES[0]["image"], ["dog"])["results"]) == 1


@pytest.fixture(scope="module")
def api(gateway: httpx.Client) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(str(gateway.base_url.join("/openapi.json")))


def test_answers_to_whatever_the_document_allows_are_as_it_says(api: schemathesis.BaseSchema) -> None:
    checks = [
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
    ]

    def conforms(case: schemathesis.Case) -> None:
        response = case.call()
        assert response.status_code < 500 or response.status_code in (503, 504), response.text
        case.validate_response(response, checks=checks)

    operations = [result.ok() for result in api.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/ground", "/predict", "/v1/metadata"}
    for operation in operations:
        few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        few(given(operation.as_strategy())(conforms))()


HOSTILE = [entry for index, entry in enumerate(CORPUS) if index % 6 == 0]


def test_hostile_inputs_get_their_answers_and_leave_the_models_whole(gateway: httpx.Client) -> None:
    before = ground(gateway, CASES[0]["image"], ["dog"])["results"]
    faults = []
    for entry in HOSTILE:
        headers = {name: value.encode("latin-1") for name, value in entry.all_headers.items()}
        try:
            response = gateway.post(entry.path, content=entry.body, headers=headers)
        except httpx.LocalProtocolError:  # httpx sends no such header
            continue
        if response.status_code == 404:  # of models that only the corpus's own service has
            assert response.json()["type"] == "urn:referent:problem:unknown-model"
        elif fault := fault_of(entry, response):
            faults.append(f"{entry.name}: {fault}")
    assert not faults, "\n".join(faults)
    assert ground(gateway, CASES[0]["image"], ["dog"])["results"] == before


def test_special_tokens_in_an_expression_are_only_text(gateway: httpx.Client) -> None:
    together = ground(gateway, CASES[0]["image"], ["<image>", "[LOC]", "dog"])["results"]
    alone = ground(gateway, CASES[0]["image"], ["dog"])["results"]
    assert together[2]["box_xyxy"] == pytest.approx(alone[0]["box_xyxy"], abs=0.05)


def test_more_expressions_than_one_row_holds(gateway: httpx.Client) -> None:
    names = list(CASES[0]["objects"])
    expressions = [names[i % len(names)] for i in range(32)]
    results = ground(gateway, CASES[0]["image"], expressions)["results"]
    assert [result["expression"] for result in results] == expressions
    assert results[0]["box_xyxy"] == pytest.approx(results[len(names)]["box_xyxy"], abs=0.05)


def test_a_version_published_while_running_is_served_next(gateway: httpx.Client, repository: Path) -> None:
    """The same weights with another threshold, so that a change of version shows in `present`."""
    bundle, digest = load_bundle(repository, "mini")
    before = ground(gateway, CASES[0]["image"], ["dog"])
    assert (before["version"], before["digest"]) == (bundle.version, digest)
    new, new_digest = republish(repository, "mini", bundle.version, repository, present_threshold=1.1)
    assert (repository / "mini" / new.version / BUNDLE_FILE).exists()
    answers = []

    def served_new() -> bool:
        answers.append(ground(gateway, CASES[0]["image"], ["dog"]))  # no request fails meanwhile
        return answers[-1]["version"] == new.version

    until(served_new)
    assert answers[-1]["digest"] == new_digest
    assert answers[-1]["results"][0]["present"] is False
    assert answers[-1]["results"][0]["box_xyxy"] == pytest.approx(before["results"][0]["box_xyxy"], abs=0.05)
