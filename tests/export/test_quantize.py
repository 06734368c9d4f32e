import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.parity import ParityError, check, tolerances
from export.parts import head
from export.quantize import quantize
from referent.core.boxes import cxcywh_to_xyxy, iou
from referent.core.bundle import load_bundle
from referent.core.contract import VISION_ENCODER, part_name
from referent.kinds import load_processor
from referent.kinds.head import BOX_HEAD, LANGUAGE_MODEL, Head
from tests.support.tiny import MODEL_REPOSITORY

PICTURE = Path(__file__).parents[1] / "samples" / "scene-1.jpg"


def boxes_of(files: list[Path], expressions: list[str]) -> np.ndarray:
    """(N, 4) boxes that the graphs find one after another."""
    bundle, _ = load_bundle(MODEL_REPOSITORY, "mini")
    [tensors] = load_processor(MODEL_REPOSITORY, bundle).prepare(PICTURE.read_bytes(), expressions).inferences
    for step, file in zip(Head.steps, files, strict=True):
        outputs = onnxruntime.InferenceSession(file).run(None, {t.name: tensors[t.name] for t in step.inputs})
        tensors |= {t.name: output for t, output in zip(step.outputs, outputs, strict=True)}
    return tensors["boxes"][0, : len(expressions)]


def test_int8_graphs_are_smaller_and_find_the_same_boxes(tmp_path: Path) -> None:
    files = [MODEL_REPOSITORY / part_name("mini", step) / "1" / "model.onnx" for step in Head.steps]
    copies = [
        Path(shutil.copy(file, tmp_path / f"{step.suffix}.onnx")) for step, file in zip(Head.steps, files, strict=True)
    ]
    for copy, file, step in zip(copies, files, Head.steps, strict=True):
        if step is not BOX_HEAD:
            quantize(copy)
            assert copy.stat().st_size < {LANGUAGE_MODEL: 0.4, VISION_ENCODER: 0.6}[step] * file.stat().st_size
    expressions = ["the truck", "soap", "the pineapple", "bell"]
    exact, quantized = (cxcywh_to_xyxy(boxes_of(each, expressions)) for each in (files, copies))
    assert (exact != quantized).any()
    assert (iou(exact, quantized) > 0.9).all()


def test_parity_of_int8_bounds_the_boxes_alone() -> None:
    import torch

    reference = {"hidden_states": torch.zeros(1, 2), "boxes": torch.full((1, 1, 4), 0.5)}
    near = {"hidden_states": torch.ones(1, 2), "boxes": torch.full((1, 1, 4), 0.53)}
    assert check("int8", reference, near, tolerances("int8", head))["boxes"] == pytest.approx(0.03)
    far = near | {"boxes": torch.full((1, 1, 4), 0.6)}
    with pytest.raises(ParityError, match="boxes differs"):
        check("int8", reference, far, tolerances("int8", head))
