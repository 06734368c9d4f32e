"""Kind `head`: vision_encoder -> language_model -> box_head; one box and score an expression, all in one pass."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from referent.core.answers import Answer, Referent
from referent.core.boxes import Floats
from referent.core.bundle import Bundle
from referent.core.contract import (
    IMAGE,
    IMAGE_FEATURES,
    INPUT_IDS,
    LOC_POSITIONS,
    SEGMENT_IDS,
    VISION_ENCODER,
    Step,
    Tensor,
)
from referent.core.kind import Arrays, Kind, Options, Prepared
from referent.core.packing import pack
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec

HIDDEN_STATES = Tensor("hidden_states", None, ("N", "D"))
BOXES = Tensor("boxes", "FP32", ("N", "4"))  # cx,cy,w,h in 0..1 of the bundle's box frame
SCORES = Tensor("scores", "FP32", ("N",))  # predicted IoU; absent from models trained without it

LANGUAGE_MODEL = Step("language_model", (INPUT_IDS, SEGMENT_IDS, LOC_POSITIONS, IMAGE_FEATURES), (HIDDEN_STATES,))
BOX_HEAD = Step("box_head", (HIDDEN_STATES,), (BOXES, SCORES))


class Head(Kind):
    """A box head reads the hidden state at each expression's [LOC]."""

    name = "head"
    steps = (VISION_ENCODER, LANGUAGE_MODEL, BOX_HEAD)
    inputs = (IMAGE, INPUT_IDS, SEGMENT_IDS, LOC_POSITIONS)

    def outputs(self, bundle: Bundle) -> tuple[Tensor, ...]:
        return (BOXES, SCORES) if bundle.has_scores else (BOXES,)

    def gives(self, spec: ModelSpec) -> Literal["boxes", "points"]:
        return "boxes"

    def several(self, spec: ModelSpec) -> bool:
        return False

    def inferences(
        self,
        spec: ModelSpec,
        encoder: PromptEncoder,
        image: npt.NDArray[np.uint8],
        expressions: Sequence[str],
        options: Options,
    ) -> list[Arrays]:
        suffixes = [encoder.suffix(expression) for expression in expressions]
        return [
            {
                IMAGE.name: image[None],
                INPUT_IDS.name: row.input_ids[None],
                SEGMENT_IDS.name: row.segment_ids[None],
                LOC_POSITIONS.name: row.loc_positions[None],
            }
            for row in pack(encoder.prefix, suffixes, spec.buckets, spec.prompt.pad_token_id)
        ]

    def answers(self, spec: ModelSpec, prepared: Prepared, outputs: Sequence[Arrays]) -> list[Answer]:
        used = [np.count_nonzero(inference[LOC_POSITIONS.name]) for inference in prepared.inferences]

        def column(tensor: Tensor) -> Floats:
            return np.concatenate([arrays[tensor.name][0, :n] for arrays, n in zip(outputs, used, strict=True)])

        boxes_xyxy = prepared.frame.boxes_to_image(column(BOXES))
        scores = column(SCORES).tolist() if SCORES.name in outputs[0] else [None] * len(boxes_xyxy)
        size, threshold = prepared.frame.image_size, spec.present_threshold
        answers = []
        for expression, box_xyxy, score in zip(prepared.expressions, boxes_xyxy, scores, strict=True):
            present = None if score is None or threshold is None else score >= threshold
            guess = Referent.of_box(expression, box_xyxy, size, score, present)
            answers.append(Answer.of(expression, () if present is False else (guess,), present=present, guess=guess))
        return answers

    def check_golden(self, outputs: Sequence[Arrays]) -> None:
        for arrays in outputs:
            boxes = arrays[BOXES.name]
            if not ((boxes >= 0) & (boxes <= 1)).all():
                raise ValueError(f"boxes {boxes.tolist()} are outside 0..1")

    def warm_ups(self, spec: ModelSpec) -> dict[str, dict[str, int]]:
        return {f"{b.tokens} tokens": {"T": b.tokens, "N": b.expressions} for b in spec.buckets}
