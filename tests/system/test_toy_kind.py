"""A kind that the project does not ship: registered with one call, then published, served beside mini and asked."""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export.publish import publish
from referent.client.http import Client
from referent.core.answers import Answer, Referent
from referent.core.bundle import TOKENIZER_FILE, Bundle, load_bundle
from referent.core.contract import Step, Tensor
from referent.core.kind import Arrays, Kind, Options, Prepared
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.kinds import KINDS, register
from referent.triton.client import TritonClient
from runtime.launcher import TritonServer
from tests.support.load import gateway
from tests.support.tiny import copy_mini

PHOTO = Tensor("photo", "UINT8", ("S", "S", "3"))
QUESTIONS = Tensor("questions", "INT64", ("Q",))
COLUMNS, ROWS = Tensor("columns", "FP32", ("S",)), Tensor("rows", "FP32", ("S",))
SPOTS = Tensor("spots", "FP32", ("Q", "2"))  # x, y in 0..1 of the square
DOT, SIZE = (150, 30), (200, 100)  # of a white dot, and of the black picture around it


class Brightest(Kind):
    """Points at the brightest place, whatever is asked."""

    name = "brightest"
    steps = (Step("scanner", (PHOTO,), (COLUMNS, ROWS)), Step("finder", (COLUMNS, ROWS, QUESTIONS), (SPOTS,)))
    inputs = (PHOTO, QUESTIONS)

    def outputs(self, bundle: Bundle) -> tuple[Tensor, ...]:
        return (SPOTS,)

    def gives(self, spec: ModelSpec) -> Literal["boxes", "points"]:
        return "points"

    def several(self, spec: ModelSpec) -> bool:
        return False

    def inferences(
        self, spec: ModelSpec, encoder: PromptEncoder, image: np.ndarray, expressions: Sequence[str], options: Options
    ) -> list[Arrays]:
        return [{PHOTO.name: image[None], QUESTIONS.name: np.array([[len(text) for text in expressions]])}]

    def answers(self, spec: ModelSpec, prepared: Prepared, outputs: Sequence[Arrays]) -> list[Answer]:
        points = prepared.frame.points_to_image(outputs[0][SPOTS.name][0])
        found = zip(prepared.expressions, points, strict=True)
        referents = [Referent.of_point(text, point, prepared.frame.image_size) for text, point in found]
        return [Answer.of(referent.expression, [referent], present=None) for referent in referents]

    def check_golden(self, outputs: Sequence[Arrays]) -> None:
        if not ((outputs[0][SPOTS.name] > 0) & (outputs[0][SPOTS.name] < 1)).all():
            raise ValueError("a spot outside the square")

    def warm_ups(self, spec: ModelSpec) -> dict[str, dict[str, int]]:
        return {"one question": {"Q": 1}}


def graphs(size: int) -> dict[str, onnx.ModelProto]:
    """Step's suffix -> its graph, for a square of that size."""
    axes = {"columns_axes": [1, 3], "rows_axes": [2, 3], "slot_axis": [1], "half": 0.5, "side": float(size)}
    dtypes = {int: np.int64, list: np.int64, float: np.float32}
    constants = {name: numpy_helper.from_array(np.array(v, dtypes[type(v)]), name) for name, v in axes.items()}
    two = numpy_helper.from_array(np.array([2]), "two")
    value = helper.make_tensor_value_info
    scanner = helper.make_graph(
        [
            helper.make_node("Cast", ["photo"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["floats", "columns_axes"], ["columns"], keepdims=0),
            helper.make_node("ReduceMax", ["floats", "rows_axes"], ["rows"], keepdims=0),
        ],
        "scanner",
        [value("photo", TensorProto.UINT8, ["B", size, size, 3])],
        [value(name, TensorProto.FLOAT, ["B", size]) for name in ("columns", "rows")],
        [constants["columns_axes"], constants["rows_axes"]],
    )
    places = []
    for name in ("columns", "rows"):
        places += [
            helper.make_node("ArgMax", [name], [f"{name}_index"], axis=1, keepdims=1),
            helper.make_node("Cast", [f"{name}_index"], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{name}_float", "half"], [f"{name}_middle"]),
            helper.make_node("Div", [f"{name}_middle", "side"], [f"{name}_share"]),
        ]
    finder = helper.make_graph(
        [
            *places,
            helper.make_node("Concat", ["columns_share", "rows_share"], ["spot"], axis=1),
            helper.make_node("Unsqueeze", ["spot", "slot_axis"], ["slot"]),
            helper.make_node("Shape", ["questions"], ["asked"]),
            helper.make_node("Concat", ["asked", "two"], ["shape"], axis=0),
            helper.make_node("Expand", ["slot", "shape"], ["spots"]),
        ],
        "finder",
        [
            *(value(name, TensorProto.FLOAT, ["B", size]) for name in ("columns", "rows")),
            value("questions", TensorProto.INT64, ["B", "Q"]),
        ],
        [value("spots", TensorProto.FLOAT, ["B", "Q", 2])],
        [constants["slot_axis"], constants["half"], constants["side"], two],
    )
    opset = [helper.make_opsetid("", 18)]
    return {g.name: helper.make_model(g, opset_imports=opset, ir_version=10) for g in (scanner, finder)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """mini, and beside it a model of the new kind."""
    folder = tmp_path_factory.mktemp("toy")
    repository = folder / "model_repository"
    copy_mini(repository)
    mini, _ = load_bundle(repository, "mini")
    register(Brightest())
    parts = {}
    for suffix, graph in graphs(mini.image.size).items():
        parts[suffix] = folder / suffix
        parts[suffix].mkdir()
        onnx.save(graph, parts[suffix] / "model.onnx")
    spec = ModelSpec(**{name: getattr(mini, name) for name in ModelSpec.model_fields} | {"kind": Brightest.name})
    publish(
        repository, "lamp", spec.model_copy(update={"present_threshold": None, "knows": "bright dots"}), parts,
        repository / "mini" / mini.version / TOKENIZER_FILE, dtype="fp32", has_scores=False, sizes={}, max_batch_size=4,
    )  # fmt: skip
    yield repository
    del KINDS[Brightest.name]


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def url(triton: TritonServer, repository: Path) -> Iterator[str]:
    with gateway(repository, triton.grpc_url) as url:
        yield url


@pytest.fixture(scope="module")
def picture() -> bytes:
    image = Image.new("RGB", SIZE)
    image.paste((255, 255, 255), (DOT[0] - 1, DOT[1] - 1, DOT[0] + 2, DOT[1] + 2))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_it_is_asked_by_http(url: str, picture: bytes) -> None:
    body = {"expression": ["the lamp", "it"], "model": "lamp"}
    answer = httpx.post(f"{url}/v1/ground", files={"image": picture}, data=body).raise_for_status().json()
    assert [result["expression"] for result in answer["results"]] == body["expression"]
    for result in answer["results"]:
        assert result["point_xy"] == pytest.approx(DOT, abs=1.5)
        assert (result["box_xyxy"], result["score"], result["present"]) == (None, None, None)
        assert [referent["point_xy"] for referent in result["referents"]] == [result["point_xy"]]


def test_it_is_asked_by_the_sdk_and_drawn(url: str, picture: bytes) -> None:
    with Client(url) as client:
        answer = client.ground(picture, "the lamp", model="lamp")
        [entry] = [model for model in client.models() if model.name == "lamp"]
        mini = client.ground(picture, "the lamp", model="mini")
    assert answer.results[0].point_xy == pytest.approx(DOT, abs=1.5)
    assert answer.plot().getpixel(DOT) != (255, 255, 255)
    assert (entry.kind, entry.gives, entry.several, entry.knows) == ("brightest", "points", False, "bright dots")
    assert mini.results[0].box_xyxy is not None  # beside it, undisturbed


def test_it_is_asked_without_the_gateway(triton: TritonServer, repository: Path, picture: bytes) -> None:
    with TritonClient(triton.grpc_url, "lamp", repository) as client:
        assert client.ground(picture, "the lamp").results[0].point_xy == pytest.approx(DOT, abs=1.5)


def test_what_reads_boxes_alone_is_told_why_there_is_none(url: str, picture: bytes) -> None:
    body = {"image": base64.b64encode(picture).decode(), "text": "the lamp", "model": "lamp"}
    response = httpx.post(f"{url}/predict", json=body)
    assert response.status_code == 422
    assert "answers with points" in response.json()["detail"]


def test_a_kind_that_nobody_registered_is_refused_by_name(repository: Path, tmp_path: Path) -> None:
    mini, _ = load_bundle(repository, "mini")
    spec = ModelSpec(**{name: getattr(mini, name) for name in ModelSpec.model_fields} | {"kind": "oracle"})
    with pytest.raises(RuntimeError, match="kind 'oracle'; this release serves: head"):
        publish(tmp_path, "x", spec, {}, tmp_path / "none", dtype="fp32", has_scores=False, sizes={}, max_batch_size=1)
