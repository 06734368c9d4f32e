"""Weights of eight and four bits: what a product gives, what an export publishes, and when it refuses."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from export import build as exporter
from export.graphs import quantize
from export.parity import ParityError, compare_rounded, reference, tolerances, trials, verify
from export.parts import parts_of
from export.quantize import ROUNDINGS, Rounding, restored
from referent.core.boxes import cxcywh_to_xyxy, iou
from referent.core.bundle import load_bundle
from referent.core.contract import part_name
from referent.kinds import load_processor
from referent.kinds.head import BOX_HEAD, LANGUAGE_MODEL, Head
from referent.modeling.checkpoint import load_checkpoint
from tests.support.text_model import GRAMMARS, save_text_checkpoint
from tests.support.tiny import MODEL_REPOSITORY

PICTURE = Path(__file__).parents[1] / "samples" / "scene-1.jpg"
VERSION = load_bundle(MODEL_REPOSITORY, "mini")[0].version
GRAPHS = {step: MODEL_REPOSITORY / part_name("mini", step) / VERSION / "model.onnx" for step in Head.steps}


@pytest.fixture(scope="module", params=ROUNDINGS)
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """Which weights, and mini's graphs with them."""
    folder = tmp_path_factory.mktemp(request.param)
    files = [folder / f"{step.suffix}.onnx" for step in GRAPHS]
    for source, file in zip(list(GRAPHS.values())[:2], files, strict=False):
        quantize(source, file, ROUNDINGS[request.param])
    return request.param, [*files[:2], GRAPHS[BOX_HEAD]]


def boxes_of(files: list[Path], expressions: list[str]) -> np.ndarray:
    """(N, 4) boxes that the graphs find one after another."""
    bundle, _ = load_bundle(MODEL_REPOSITORY, "mini")
    [tensors] = load_processor(MODEL_REPOSITORY, bundle).prepare(PICTURE.read_bytes(), expressions).inferences
    for step, file in zip(Head.steps, files, strict=True):
        outputs = onnxruntime.InferenceSession(file).run(None, {t.name: tensors[t.name] for t in step.inputs})
        tensors |= {t.name: output for t, output in zip(step.outputs, outputs, strict=True)}
    return tensors["boxes"][0, : len(expressions)]


def test_graphs_are_smaller_and_find_the_same_boxes(quantized: tuple[str, list[Path]]) -> None:
    weights, files = quantized
    size = sum(file.stat().st_size for file in files) / sum(file.stat().st_size for file in GRAPHS.values())
    assert size < {"int8": 0.9, "int4": 0.72}[weights]  # of half precision; convolutions and embeddings grow to fp32
    expressions = ["the truck", "soap", "the pineapple", "bell"]
    exact, found = (cxcywh_to_xyxy(boxes_of(each, expressions)) for each in (list(GRAPHS.values()), files))
    assert (exact != found).any()
    assert (iou(exact, found) > {"int8": 0.95, "int4": 0.8}[weights]).all()


def test_an_answer_does_not_depend_on_its_batch_mates(quantized: tuple[str, list[Path]]) -> None:
    session, rng = onnxruntime.InferenceSession(quantized[1][1]), np.random.default_rng(0)
    segments = np.repeat([[0] * 146 + [1] * 8 + [-1] * 6], 5, 0)
    rows = {
        "input_ids": np.where(np.arange(160) < 145, 4, rng.integers(10, 200, (5, 160))),
        "segment_ids": segments,
        "loc_positions": np.full((5, 1), 153),
        "image_features": rng.standard_normal((5, 144, 256), np.float32) * 10.0 ** np.arange(-2, 3)[:, None, None],
    }
    rows["image_features"] = rows["image_features"].astype(np.float32)
    [together] = session.run(None, rows)
    for index in range(5):
        [alone] = session.run(None, {name: array[index : index + 1] for name, array in rows.items()})
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("rounding", [Rounding(4), Rounding(8), Rounding(4, 64)], ids=str)
@pytest.mark.parametrize("inputs", [64, 50, 7], ids="{} inputs".format)
def test_a_product_is_that_of_the_restored_weight(
    rounding: Rounding, inputs: int, dtype: type[np.floating], tmp_path: Path
) -> None:
    rng = np.random.default_rng(inputs)
    weight = rng.standard_normal((inputs, 24)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(n, kind, ["b", "t", size]) for n, size in (("x", inputs), ("y", 24)))
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), tmp_path / "m.onnx")
    quantize(tmp_path / "m.onnx", tmp_path / "rounded.onnx", rounding)
    given = rng.standard_normal((2, 3, inputs)).astype(dtype)
    [found] = onnxruntime.InferenceSession(tmp_path / "rounded.onnx").run(None, {"x": given})
    left = restored(torch.from_numpy(weight.T.copy()), rounding).numpy().T
    error = np.abs(found - given.astype(np.float32) @ left.astype(np.float32)).max()
    assert error < (0.3 if rounding.bits == 8 else 0.02 if dtype == np.float16 else 1e-4)
    assert 0 < np.abs(left - weight).max() < np.abs(weight).max() / (100 if rounding.bits == 8 else 6)


@pytest.fixture(scope="module")
def published(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tiny model in int4."""
    repository = tmp_path_factory.mktemp("repository")
    exporter.export(tiny_checkpoint, "tiny", repository, weights="int4", quick_parity=True)
    return repository


def test_what_is_published_says_its_weights_and_leaves_no_others_behind(published: Path) -> None:
    bundle, _ = load_bundle(published, "tiny")
    assert (bundle.dtype, bundle.weights) == ("fp32", "int4")
    assert bundle.training["weights"] == {"dtype": "int4", "block": 32}
    assert bundle.computed_bytes == 4 * bundle.size_bytes
    folder = published / part_name("tiny", LANGUAGE_MODEL) / "1"
    assert sorted(file.name for file in folder.iterdir()) == ["config.pbtxt", "model.onnx"]
    graph = ir.load(folder / "model.onnx").graph
    assert sum(node.op_type == "MatMulNBits" for node in graph) == 14  # seven products in each of two layers
    left = {value.name for value in graph.initializers.values() if len(value.shape) == 2 and value.dtype == 1}
    assert not [name for name in left if "proj" in name and "scales" not in name]
    head = ir.load(published / part_name("tiny", BOX_HEAD) / "1" / "model.onnx").graph
    assert not [node for node in head if node.op_type == "MatMulNBits"]


def test_graphs_are_held_against_pytorch_with_the_same_weights(published: Path, tiny_checkpoint: Path) -> None:
    model, spec = load_checkpoint(tiny_checkpoint)
    model.llava = model.llava.merge_and_unload()
    parts, tried = parts_of(spec), trials(spec, quick=True)
    files = [published / part_name("tiny", step) / "1" / "model.onnx" for step in Head.steps]
    places = {file: file.parent.parent.parent / step.suffix for file, step in zip(files, Head.steps, strict=True)}
    own = [Path(shutil.copytree(file.parent, place)) / "model.onnx" for file, place in places.items()]
    same, other = (reference(model, spec, tried, rounding) for rounding in (Rounding(4), Rounding(4, 64)))
    verify(own, same, tolerances("fp32", parts), parts, mapped=False)
    with pytest.raises(ParityError, match="differs by"):
        verify(own, other, tolerances("fp32", parts), parts, mapped=False)
    exact = reference(model, spec, tried)
    assert 0 < compare_rounded(exact, reference(model, spec, tried, Rounding(8)), Rounding(8), parts) < 0.05
    wrong = [case._replace(tensors={parts.JUDGED: case.tensors[parts.JUDGED].flip(-1)}) for case in same]
    with pytest.raises(ParityError, match="int8 weights"):
        compare_rounded(exact, wrong, Rounding(8), parts)


@pytest.mark.parametrize(("weights", "bits", "accuracy_level"), [("int8", 8, 4), ("int4", 4, 0)])
def test_a_generator_is_rounded_too(tmp_path: Path, weights: str, bits: int, accuracy_level: int) -> None:
    checkpoint = save_text_checkpoint(tmp_path / "text", GRAMMARS[0])
    exporter.export(checkpoint, "words", tmp_path / "repository", weights=weights, quick_parity=True)
    graph = ir.load(tmp_path / "repository" / "words_generator" / "1" / "model.onnx").graph
    products = [node for node in graph if node.op_type == "MatMulNBits"]
    assert {node.attributes["bits"].value for node in products} == {bits}
    assert {node.attributes["accuracy_level"].value for node in products} == {accuracy_level}


def test_an_export_that_was_stopped_goes_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(tiny_checkpoint), "--name", "tiny", "--to", str(tmp_path / "repository"), "--work"]
    given = [*places, str(tmp_path / "work"), "--quick-parity"]
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "verify", lambda *_: (_ for _ in ()).throw(ParityError("boxes differ")))
        with pytest.raises(SystemExit, match="boxes differ\nNothing was published"):
            exporter.main(given)
    assert not (tmp_path / "repository").exists()
    with pytest.raises(SystemExit, match=r"work is not of this checkpoint and these options: name another --work"):
        exporter.main([*given, "--weights", "int8"])
    (tmp_path / "work" / "box_head").rename(tmp_path / "work" / "box_head.partial")  # as if it had been killed there
    written, original = [], exporter.export_onnx
    monkeypatch.setattr(exporter, "export_onnx", lambda part, *args: (written.append(part), original(part, *args)))
    monkeypatch.setattr(exporter, "reference", None)
    exporter.main(given)
    assert [part.step for part in written] == [BOX_HEAD]
    assert load_bundle(tmp_path / "repository", "tiny")[0].training["parity"]["cases"]
    assert not (tmp_path / "work").exists()
