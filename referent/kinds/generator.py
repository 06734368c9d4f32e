"""Kind `generator`: vision_encoder -> generator; text under a grammar, with the boxes or points that it says."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from referent.core.answers import Answer, FinishReason, Gives, Referent
from referent.core.boxes import Floats
from referent.core.bundle import Bundle
from referent.core.contract import IMAGE, IMAGE_FEATURES, INPUT_IDS, SEGMENT_IDS, VISION_ENCODER, Step, Tensor
from referent.core.frame import Frame
from referent.core.grammar import Generation
from referent.core.kind import Arrays, Kind, Options, Prepared
from referent.core.packing import pack
from referent.core.prompts import PromptEncoder, clean_expression
from referent.core.spec import ModelSpec

# text is UTF-8 padded with zeros: Triton's own strings cannot pass a Python backend under numpy 2
LABELS = Tensor("labels", "UINT8", ("N", "L"))
TIMEOUT_MS = Tensor("timeout_ms", "INT32", ("1",))  # 0: none
MAX_INSTANCES = Tensor("max_instances", "INT32", ("1",))  # 0: the model's own default
TEXTS = Tensor("texts", "UINT8", ("N", "C"))
BOXES = Tensor("boxes", "FP32", ("M", "4"))  # cx,cy,w,h in 0..1 of the bundle's box frame; a point has w = h = 0
POINTS = Tensor("points", "FP32", ("M", "2"))  # x,y likewise
OWNERS = Tensor("owners", "INT32", ("M",))  # the expression, from 0, of each box or point
SCORES = Tensor("scores", "FP32", ("M",))  # geometric mean of the probabilities, among the allowed, of its decisions
ANSWER_SCORES = Tensor("answer_scores", "FP32", ("N",))  # likewise of all decisions of an answer
MASS = Tensor("mass", "FP32", ("N",))  # mean log of what the model itself gave to the tokens that were allowed
FINISH_REASONS = Tensor("finish_reasons", "INT32", ("N",))  # index in `REASONS`
PASSES = Tensor("passes", "INT32", ("1",))
PREFILL_MS = Tensor("prefill_ms", "FP32", ("1",))  # what the prompts of its rows took
GENERATION_MS = Tensor("generation_ms", "FP32", ("1",))  # from the first row's slot to the last one's end, without that

ROW_EXPRESSIONS = 8  # that a row of the cache is made for
REASONS: tuple[FinishReason, ...] = ("stop", "length", "error")
ABOUT_ANSWERS = (OWNERS, SCORES, ANSWER_SCORES, MASS, FINISH_REASONS, PASSES, PREFILL_MS, GENERATION_MS)
GENERATOR = Step(
    "generator",
    (IMAGE_FEATURES, INPUT_IDS, SEGMENT_IDS, LABELS, TIMEOUT_MS, MAX_INSTANCES),
    (TEXTS, BOXES, POINTS, *ABOUT_ANSWERS),
    backend="generator",
    batches=False,
)


def generation_of(spec: ModelSpec) -> Generation:
    """Raises ValueError for a spec without one."""
    if spec.generation is None:
        raise ValueError("the model writes its answers, and its spec does not say how: it has no `generation`")
    return spec.generation


def texts_to_bytes(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    """(1, N, L) UTF-8, padded with zeros."""
    rows = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    table = np.zeros((1, len(rows), max(1, *map(len, rows))), np.uint8)
    for place, row in zip(table[0], rows, strict=True):
        place[: len(row)] = row
    return table


def texts_from_bytes(table: npt.NDArray[np.uint8]) -> list[str]:
    """(1, N, L) -> N texts."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in table[0]]


class Generator(Kind):
    """A decoder writes an answer for each expression."""

    name = "generator"
    steps = (VISION_ENCODER, GENERATOR)
    inputs = (IMAGE, INPUT_IDS, SEGMENT_IDS, LABELS, TIMEOUT_MS, MAX_INSTANCES)

    def outputs(self, bundle: Bundle) -> tuple[Tensor, ...]:
        return (TEXTS, POINTS if self.gives(bundle) == "points" else BOXES, *ABOUT_ANSWERS)

    def gives(self, spec: ModelSpec) -> Gives:
        return generation_of(spec).grammar.gives

    def several(self, spec: ModelSpec) -> bool:
        return generation_of(spec).grammar.several

    def inferences(
        self,
        spec: ModelSpec,
        encoder: PromptEncoder,
        image: npt.NDArray[np.uint8],
        expressions: Sequence[str],
        options: Options,
    ) -> list[Arrays]:
        suffixes = [encoder.suffix(expression) for expression in expressions]
        labels = iter([clean_expression(expression) for expression in expressions])
        return [
            {
                IMAGE.name: image[None],
                INPUT_IDS.name: row.input_ids[None],
                SEGMENT_IDS.name: row.segment_ids[None],
                LABELS.name: texts_to_bytes([next(labels) for _ in range(row.expressions)]),
                TIMEOUT_MS.name: np.zeros((1, 1), np.int32),
                MAX_INSTANCES.name: np.array([[options.max_instances or 0]], np.int32),
            }
            for row in pack(encoder.prefix, suffixes, spec.buckets, spec.prompt.pad_token_id)
        ]

    def requests(self, spec: ModelSpec, expressions: int, options: Options) -> int:
        """The number of rows that are written. A row holds several expressions with their usual number of instances, or
        one if prompt tokens attend to later ones."""
        generation = generation_of(spec)
        if generation.bidirectional:
            return expressions
        usual = generation.max_instances
        most = options.max_instances if options.max_instances and generation.grammar.several else usual
        in_a_row = usual * min(spec.buckets[-1].expressions, ROW_EXPRESSIONS)
        return -(-expressions * most // in_a_row)

    def with_timeout(self, arrays: Arrays, timeout_s: float) -> Arrays:
        return arrays | {TIMEOUT_MS.name: np.array([[max(1, int(timeout_s * 1000))]], np.int32)}

    def answers(self, spec: ModelSpec, prepared: Prepared, outputs: Sequence[Arrays]) -> list[Answer]:
        expressions = iter(prepared.expressions)
        return [
            self._answer(spec, prepared.frame, next(expressions), text, arrays, index)
            for arrays in outputs
            for index, text in enumerate(texts_from_bytes(arrays[TEXTS.name]))
        ]

    def _answer(self, spec: ModelSpec, frame: Frame, expression: str, text: str, arrays: Arrays, index: int) -> Answer:
        reason = REASONS[int(arrays[FINISH_REASONS.name][0, index])]
        if reason == "error":
            return Answer.of(expression, (), present=None, finish_reason=reason)
        own = arrays[OWNERS.name][0] == index
        found = []
        for mark, score in zip(self._marks(arrays)[own], arrays[SCORES.name][0, own].tolist(), strict=True):
            referent = self._referent(frame, expression, mark, score)
            if referent is not None and score >= (spec.present_threshold or 0):
                found.append(referent)
        found.sort(key=lambda referent: -(referent.score or 0))
        score = float(arrays[ANSWER_SCORES.name][0, index])
        return Answer.of(expression, found, present=bool(found), score=score, text=text, finish_reason=reason)

    def _marks(self, arrays: Arrays) -> Floats:
        return np.asarray(arrays[BOXES.name if BOXES.name in arrays else POINTS.name][0])

    def _referent(self, frame: Frame, expression: str, mark: Floats, score: float) -> Referent | None:
        """The referent, a point if it has no extent; None for a box outside the image."""
        size = frame.image_size
        if not mark[2:].any():
            return Referent.of_point(expression, frame.points_to_image(mark[:2]), size, score, True)
        referent = Referent.of_box(expression, frame.boxes_to_image(mark), size, score, True)
        x1, y1, x2, y2 = referent.box_xyxy or (0, 0, 0, 0)
        return referent if x2 > x1 and y2 > y1 else None

    def timings_ms(self, outputs: Sequence[Arrays]) -> dict[str, float]:
        stages = {"prefill": PREFILL_MS, "generation": GENERATION_MS}
        return {stage: max(float(arrays[tensor.name][0, 0]) for arrays in outputs) for stage, tensor in stages.items()}

    def check_golden(self, outputs: Sequence[Arrays]) -> None:
        for arrays in outputs:
            if (arrays[FINISH_REASONS.name] == REASONS.index("error")).any():
                raise ValueError("an answer that failed")
            if not ((arrays[ANSWER_SCORES.name] > 0) & (arrays[ANSWER_SCORES.name] <= 1)).all():
                raise ValueError(f"scores {arrays[ANSWER_SCORES.name].tolist()} that are not probabilities")

    def warm_ups(self, spec: ModelSpec) -> dict[str, dict[str, int]]:
        return {"one": {}}
