"""The processor of one model: a request -> tensors, and tensors -> answers.

Evaluation, the gateway, its shadow and the direct Triton client all go through here.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from referent.core.answers import Answer
from referent.core.contract import DETECTOR_FRAME, DETECTOR_IMAGE
from referent.core.images import MAX_PIXELS, Picture
from referent.core.kind import DEFAULTS, Arrays, Kind, Options, Prepared
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec

Enter = Callable[[str], None]


class Processor:
    """Pre- and postprocessing as the spec and its kind say."""

    def __init__(self, spec: ModelSpec, encoder: PromptEncoder, kind: Kind) -> None:
        self.spec, self.encoder, self.kind = spec, encoder, kind

    def prepare(
        self,
        data: bytes,
        expressions: Sequence[str],
        options: Options = DEFAULTS,
        *,
        max_pixels: int = MAX_PIXELS,
        until: float = math.inf,
        enter: Enter = lambda stage: None,
    ) -> Prepared:
        """An image file and expressions -> tensors; `enter` is called with "decode" and "preprocess" as they begin.

        `until` is as in `referent.core.images.decode_image`. Raises the errors of that, and
        `referent.core.prompts.ExpressionError`.
        """
        enter("decode")
        picture = self.spec.image.decode(data, max_pixels, until)
        enter("preprocess")
        return self.prepare_picture(picture, expressions, options)

    def prepare_picture(
        self, picture: Image.Image | Picture, expressions: Sequence[str], options: Options = DEFAULTS
    ) -> Prepared:
        """A decoded RGB image and expressions -> tensors. Raises `referent.core.prompts.ExpressionError`."""
        square = self.spec.image.apply(picture)
        inferences = self.kind.inferences(self.spec, self.encoder, square, expressions, options)
        second = {name: array[None] for name, array in detector_inputs(self.spec, picture).items()}
        if second:
            inferences = [arrays | second for arrays in inferences]
        return Prepared(list(expressions), self.spec.frame(picture.size), inferences, options)

    def answers(self, prepared: Prepared, outputs: Sequence[Arrays]) -> list[Answer]:
        """An answer for each expression, from the outputs of each inference."""
        return self.kind.answers(self.spec, prepared, outputs)


def detector_inputs(spec: ModelSpec, picture: Image.Image | Picture) -> Arrays:
    """The detector's inputs for an RGB image, of a model with visual position prompts: `detector_image` (R, R, 3)
    uint8 and `detector_frame` (4,) int32 x0, y0, x1, y1. Empty for other models."""
    if (detector := spec.detector_image) is None:
        return {}
    return {
        DETECTOR_IMAGE.name: detector.apply(picture),
        DETECTOR_FRAME.name: np.array(detector.extent(picture.size), np.int32),
    }
