import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from export.parity import ParityError, check, tolerances
from export.quantize import quantize
from referent.core.boxes import cxcywh_to_xyxy, iou
from referent.core.bundle import load_bundle, load_encoder
from referent.core.contract import BOX_HEAD, LANGUAGE_MODEL, STEPS, VISION_ENCODER, part_name
from referent.core.processor import Processor
from tests.support.tiny import MODEL_REPOSITORY

PICTURE = Path(__file__).parents[1] / "samples" / "scene-1.jpg"


def boxes_of(files: list[Path], expressions: list[str]) -> np.ndarray:
    """(N, 4) boxes that the graphs find one after another."""
    bundle, _ = load_bundle(MODEL_REPOSITORY, "mini")
    processor = Processor(bundle, load_encoder(MODEL_REPOSITORY, bundle))
    inputs = processor.preprocess(Image.open(PICTURE).convert("RGB"), expressions)
    row = inputs.rows[0]
    tensors = {"image": inputs.image[None], "input_ids": row.input_ids[None]}
    tensors |= {"segment_ids": row.segment_ids[None], "loc_positions": row.loc_positions[None]}
    for step, file in zip(STEPS, files, strict=True):
        outputs = onnxruntime.InferenceSession(file).run(None, {t.name: tensors[t.name] for t in step.inputs})
        tensors |= {t.name: output for t, output in zip(step.outputs, outputs, strict=True)}
    return tensors["boxes"][0, : len(expressions)]


def test_int8_graphs_are_smaller_and_find_the_same_boxes(tmp_path: Path) -> None:
    files = [MODEL_REPOSITORY / part_name("mini", step) / "1" / "model.onnx" for step in STEPS]
    copies = [
        Path(shutil.copy(file, tmp_path / f"{step.suffix}.onnx")) for step, file in zip(STEPS, files, strict=True)
    ]
    for copy, step in zip(copies, STEPS, strict=True):
        if step is not BOX_HEAD:
            quantize(copy)
    assert copies[STEPS.index(LANGUAGE_MODEL)].stat().st_size < 0.4 * files[STEPS.index(LANGUAGE_MODEL)].stat().st_size
    assert copies[STEPS.index(VISION_ENCODER)].stat().st_size < 0.6 * files[STEPS.index(VISION_ENCODER)].stat().st_size
    expressions = ["the truck", "soap", "the pineapple", "bell"]
    exact, quantized = (cxcywh_to_xyxy(boxes_of(each, expressions)) for each in (files, copies))
    assert (exact != quantized).any()
    assert (iou(exact, quantized) > 0.9).all()


def test_parity_of_int8_bounds_the_boxes_alone() -> None:
    import torch

    reference = {"hidden_states": torch.zeros(1, 2), "boxes": torch.full((1, 1, 4), 0.5)}
    near = {"hidden_states": torch.ones(1, 2), "boxes": torch.full((1, 1, 4), 0.53)}
    assert check("int8", reference, near, tolerances("int8"))["boxes"] == pytest.approx(0.03)
    far = near | {"boxes": torch.full((1, 1, 4), 0.6)}
    with pytest.raises(ParityError, match="boxes differs"):
        check("int8", reference, far, tolerances("int8"))
