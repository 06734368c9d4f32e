"""Kind `referents`: vision_encoder -> language_model -> referent_head; every referent of an expression, many or none,
all expressions in one pass."""

from collections.abc import Sequence

import numpy as np

from referent.core.answers import Answer, Referent
from referent.core.boxes import Floats
from referent.core.bundle import Bundle
from referent.core.contract import VISION_ENCODER, Step, Tensor
from referent.core.kind import MAX_INSTANCES, Arrays, Options, Prepared
from referent.core.spec import ModelSpec
from referent.kinds.at_loc import HIDDEN_STATES, AtLoc, joined
from referent.kinds.head import LANGUAGE_MODEL as READING

IMAGE_STATES = Tensor("image_states", None, ("K", "D"))
# slots are sorted best first; unused ones have score 0 and box 0
BOXES = Tensor("boxes", "FP32", ("N", "M", "4"))  # cx,cy,w,h in 0..1 of the bundle's box frame
SCORES = Tensor("scores", "FP32", ("N", "M"))  # the probability that it is a referent
PRESENCE = Tensor("presence", "FP32", ("N",))  # the probability that there is any
HEATMAP = Tensor("heatmap", "FP32", ("N", "G", "G"))  # the probability at each image token, rows from the top
TOKEN_BOXES = Tensor("token_boxes", "FP32", ("K", "4"))  # the box at each of them; not served, parity is judged by it

LANGUAGE_MODEL = READING._replace(outputs=(HIDDEN_STATES, IMAGE_STATES))
SERVED = (BOXES, SCORES, PRESENCE, HEATMAP)
REFERENT_HEAD = Step("referent_head", (HIDDEN_STATES, IMAGE_STATES), (*SERVED, TOKEN_BOXES))
WHOLE = np.array([0.5, 0.5, 1.0, 1.0])  # the frame itself
DECIMALS = 4  # of a heat map: it is looked at


class Referents(AtLoc):
    """A referent head reads the hidden states at each expression's [LOC] and at the image's tokens."""

    name = "referents"
    steps = (VISION_ENCODER, LANGUAGE_MODEL, REFERENT_HEAD)

    def outputs(self, bundle: Bundle) -> tuple[Tensor, ...]:
        return SERVED

    def asked(self, bundle: Bundle, options: Options) -> tuple[Tensor, ...]:
        return SERVED if options.heatmap else tuple(tensor for tensor in SERVED if tensor is not HEATMAP)

    def heatmaps(self, spec: ModelSpec) -> bool:
        return True

    def several(self, spec: ModelSpec) -> bool:
        return True

    def sizes(self, spec: ModelSpec) -> dict[str, int]:
        return super().sizes(spec) | {"M": MAX_INSTANCES, "G": round(spec.image_tokens**0.5)}

    def answers(self, spec: ModelSpec, prepared: Prepared, outputs: Sequence[Arrays]) -> list[Answer]:
        boxes, scores, presence = (joined(prepared.inferences, outputs, t) for t in (BOXES, SCORES, PRESENCE))
        answers = [
            self._answer(spec, prepared, *row)
            for row in zip(prepared.expressions, boxes, scores, presence.tolist(), strict=True)
        ]
        if not prepared.options.heatmap:
            return answers
        covers = tuple(prepared.frame.boxes_to_image(WHOLE).tolist())
        return [
            answer.model_copy(update={"heatmap": tuple(map(tuple, cells)), "heatmap_xyxy": covers})
            for answer, cells in zip(
                answers, joined(prepared.inferences, outputs, HEATMAP).round(DECIMALS).tolist(), strict=True
            )
        ]

    def _answer(
        self, spec: ModelSpec, prepared: Prepared, expression: str, boxes: Floats, scores: Floats, presence: float
    ) -> Answer:
        """An answer from the referents that score enough; without any, its score is the lower one of presence and best
        score."""
        referents: list[Referent] = []
        frame = prepared.frame
        lowest = spec.referent_threshold or 0
        if presence >= (spec.present_threshold or 0):
            used = (scores > 0) & (scores >= lowest)
            for box_xyxy, score in zip(frame.boxes_to_image(boxes[used]), scores[used].tolist(), strict=True):
                referent = Referent.of_box(expression, box_xyxy, frame.image_size, score, True)
                x1, y1, x2, y2 = referent.box_xyxy or (0, 0, 0, 0)
                if x2 > x1 and y2 > y1:  # not in the padding beside the image
                    referents.append(referent)
        referents = referents[: prepared.options.max_instances or MAX_INSTANCES]
        return Answer.of(expression, referents, present=bool(referents), score=float(min(presence, scores[0])))

    def check_golden(self, outputs: Sequence[Arrays]) -> None:
        for arrays in outputs:
            for tensor in (BOXES, SCORES, PRESENCE):
                values = arrays[tensor.name]
                if not ((values >= 0) & (values <= 1)).all():
                    raise ValueError(f"{tensor.name} {values.tolist()} are outside 0..1")
            if (np.diff(arrays[SCORES.name], axis=-1) > 0).any():
                raise ValueError(f"scores {arrays[SCORES.name].tolist()} are not sorted, best first")
