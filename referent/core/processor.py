"""The processor of one model: image and expressions -> tensors, and boxes of the model -> boxes of the image.

Training's evaluation, the gateway and the direct Triton client all go through here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from referent.core.boxes import Box, Floats, clip_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh
from referent.core.bundle import ModelSpec
from referent.core.images import Picture, Placement
from referent.core.packing import PackedRow, pack
from referent.core.prompts import PromptEncoder


@dataclass(frozen=True)
class Inputs:
    """One image and its expressions, prepared; expressions beyond one row's capacity fill further rows."""

    image: npt.NDArray[np.uint8]  # (S, S, 3)
    placement: Placement
    rows: list[PackedRow]
    expressions: list[str]


@dataclass(frozen=True)
class Found:
    """Where one expression's referent is. Boxes are floats; `score` and `present` are None without a score head."""

    expression: str
    box_xyxy: Box  # pixels of the image, clipped to it
    box_cxcywh_normalized: Box  # 0..1 of the whole image
    score: float | None
    present: bool | None


class Processor:
    """Pre- and postprocessing as the model spec says."""

    def __init__(self, spec: ModelSpec, encoder: PromptEncoder) -> None:
        self.spec = spec
        self._encoder = encoder

    def encode(self, expressions: Sequence[str]) -> list[PackedRow]:
        """Text tensors of the expressions. Raises `referent.core.prompts.ExpressionError`."""
        suffixes = [self._encoder.suffix(expression) for expression in expressions]
        return pack(self._encoder.prefix, suffixes, self.spec.buckets, self.spec.prompt.pad_token_id)

    def preprocess(self, image: Image.Image | Picture, expressions: Sequence[str]) -> Inputs:
        """RGB image and expressions -> tensors. Raises `referent.core.prompts.ExpressionError`."""
        rows = self.encode(expressions)
        return Inputs(*self.spec.image.apply(image), rows, list(expressions))

    def postprocess(self, inputs: Inputs, boxes: Floats, scores: Floats | None) -> list[Found]:
        """boxes (M, 4) cx,cy,w,h in 0..1 of the box frame and scores (M,), in the order of the M expressions."""
        width, height = inputs.placement.image_size
        boxes_xyxy = cxcywh_to_xyxy(boxes.astype(np.float64))
        if self.spec.box_frame == "image":
            boxes_xyxy = boxes_xyxy * [width, height, width, height]
        else:
            boxes_xyxy = inputs.placement.to_image(boxes_xyxy * self.spec.image.size)
        boxes_xyxy = clip_xyxy(boxes_xyxy, width, height)
        normalized = xyxy_to_cxcywh(boxes_xyxy / [width, height, width, height])
        threshold = self.spec.present_threshold
        return [
            Found(
                expression,
                tuple(boxes_xyxy[i].tolist()),
                tuple(normalized[i].tolist()),
                None if scores is None else float(scores[i]),
                None if scores is None or threshold is None else bool(scores[i] >= threshold),
            )
            for i, expression in enumerate(inputs.expressions)
        ]
