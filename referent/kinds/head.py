"""Kind `head`: vision_encoder -> language_model -> box_head; one box and score an expression, all in one pass."""

from collections.abc import Sequence

from referent.core.answers import Answer, Referent
from referent.core.bundle import Bundle
from referent.core.contract import IMAGE_FEATURES, INPUT_IDS, LOC_POSITIONS, SEGMENT_IDS, VISION_ENCODER, Step, Tensor
from referent.core.kind import Arrays, Prepared
from referent.core.spec import ModelSpec
from referent.kinds.at_loc import HIDDEN_STATES, AtLoc, joined

BOXES = Tensor("boxes", "FP32", ("N", "4"))  # cx,cy,w,h in 0..1 of the bundle's box frame
SCORES = Tensor("scores", "FP32", ("N",))  # predicted IoU; absent from models trained without it

LANGUAGE_MODEL = Step("language_model", (INPUT_IDS, SEGMENT_IDS, LOC_POSITIONS, IMAGE_FEATURES), (HIDDEN_STATES,))
BOX_HEAD = Step("box_head", (HIDDEN_STATES,), (BOXES, SCORES))


class Head(AtLoc):
    """A box head reads the hidden state at each expression's [LOC]."""

    name = "head"
    steps = (VISION_ENCODER, LANGUAGE_MODEL, BOX_HEAD)

    def outputs(self, bundle: Bundle) -> tuple[Tensor, ...]:
        return (BOXES, SCORES) if bundle.has_scores else (BOXES,)

    def several(self, spec: ModelSpec) -> bool:
        return False

    def answers(self, spec: ModelSpec, prepared: Prepared, outputs: Sequence[Arrays]) -> list[Answer]:
        boxes_xyxy = prepared.frame.boxes_to_image(joined(prepared.inferences, outputs, BOXES))
        scores: Sequence[float | None] = [None] * len(boxes_xyxy)
        if SCORES.name in outputs[0]:
            scores = joined(prepared.inferences, outputs, SCORES).tolist()
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
