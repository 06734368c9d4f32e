"""How answers in text become answers of the service."""

from collections.abc import Callable

import numpy as np
import pytest

from referent.core.answers import Answer
from referent.core.frame import Frame
from referent.core.grammar import BoxGrammar, BoxOrPointsGrammar, Generation, Grammar, PointGrammar
from referent.core.kind import Arrays, Options, Prepared
from referent.core.packing import Bucket
from referent.core.spec import ModelSpec
from referent.core.transform import ImageTransform
from referent.kinds.generator import Generator, texts_from_bytes, texts_to_bytes
from tests.support.tiny import TINY_PROMPT

Read = Callable[..., list[Answer]]


def spec_of(grammar: Grammar, threshold: float | None = None) -> ModelSpec:
    return ModelSpec(
        kind="generator", image=ImageTransform(size=100), image_tokens=4, box_frame="transformed", prompt=TINY_PROMPT,
        buckets=(Bucket(64, 4),), present_threshold=threshold,
        generation=Generation(grammar=grammar, eos_token_id=1),
    )  # fmt: skip


@pytest.fixture
def read() -> Read:
    """Answers to a picture of 200x100, whose square is letterboxed."""

    def read(grammar: Grammar, outputs: list[Arrays], threshold: float | None = None) -> list[Answer]:
        spec = spec_of(grammar, threshold)
        frame: Frame = spec.image.frame((200, 100))
        expressions = [f"e{i}" for i in range(sum(arrays["finish_reasons"].shape[1] for arrays in outputs))]
        return Generator().answers(spec, Prepared(expressions, frame, []), outputs)

    return read


def arrays(
    texts: list[str], marks: list[list[float]], owners: list[int], scores: list[float], **more: object
) -> Arrays:
    name = "boxes" if not marks or len(marks[0]) == 4 else "points"
    return {
        "texts": texts_to_bytes(texts),
        name: np.array([marks], np.float32).reshape(1, len(marks), -1 if marks else 4),
        "owners": np.array([owners], np.int32),
        "scores": np.array([scores], np.float32),
        "answer_scores": np.full((1, len(texts)), 0.25, np.float32),
        "finish_reasons": np.zeros((1, len(texts)), np.int32),
    } | more


BOXES, POINTS = BoxGrammar(order="cxcywh"), PointGrammar()
EITHER = BoxOrPointsGrammar(box=BOXES, points=POINTS)


@pytest.mark.parametrize(
    ("grammar", "gives", "tensor"),
    [(BOXES, "boxes", "boxes"), (POINTS, "points", "points"), (EITHER, "boxes or points", "boxes")],
)
def test_a_model_says_what_it_gives(grammar: Grammar, gives: str, tensor: str) -> None:
    spec = spec_of(grammar)
    assert Generator().gives(spec) == gives
    assert Generator().outputs(spec)[1].name == tensor


def test_referents_go_to_their_expressions_in_pixels_best_first(read: Read) -> None:
    first = arrays(
        ["a", "b"], [[0.5, 0.5, 0.5, 0.2], [0.5, 0.5, 0.2, 0.2], [0.25, 0.5, 0.1, 0.1]], [1, 0, 1], [0.3, 0.9, 0.8]
    )
    second = arrays(["c"], [[0.75, 0.5, 0.1, 0.1]], [0], [0.7])
    answers = read(BOXES, [first, second])
    assert [(answer.expression, answer.text, answer.finish_reason) for answer in answers] == [
        ("e0", "a", "stop"), ("e1", "b", "stop"), ("e2", "c", "stop"),
    ]  # fmt: skip
    assert answers[0].box_xyxy == pytest.approx((80, 30, 120, 70))
    assert [referent.score for referent in answers[1].referents] == pytest.approx([0.8, 0.3])
    assert answers[1].box_xyxy == answers[1].referents[0].box_xyxy == pytest.approx((40, 40, 60, 60))
    assert (answers[2].score, answers[2].present) == (pytest.approx(0.7), True)


def test_points_are_points(read: Read) -> None:
    (answer,) = read(POINTS, [arrays(["p"], [[0.5, 0.5], [1.0, 0.0]], [0, 0], [0.9, 0.5])])
    assert (answer.point_xy, answer.box_xyxy) == (pytest.approx((100, 50)), None)
    assert answer.referents[1].point_xy == (200, 0)  # beside the picture, in the padding: moved into it


@pytest.mark.parametrize("box", [[0.5, 0.1, 0.2, 0.1], [0.5, 0.95, 0.2, 0.02], [-0.5, 0.5, 0.2, 0.2]])
def test_a_box_beside_the_picture_is_no_referent(read: Read, box: list[float]) -> None:
    (answer,) = read(BOXES, [arrays(["t"], [box], [0], [0.9])])
    assert (answer.present, answer.referents, answer.box_xyxy) == (False, (), None)
    assert (answer.text, answer.score) == ("t", 0.25)


def test_nothing_there_is_an_answer(read: Read) -> None:
    (answer,) = read(BOXES, [arrays(["none"], [], [], [])])
    assert (answer.present, answer.referents, answer.score, answer.text) == (False, (), 0.25, "none")


def test_the_threshold_says_what_is_there(read: Read) -> None:
    outputs = [arrays(["t"], [[0.5, 0.5, 0.2, 0.2], [0.3, 0.5, 0.2, 0.2]], [0, 0], [0.9, 0.4])]
    assert [len(read(BOXES, outputs, threshold)[0].referents) for threshold in (None, 0.0, 0.5, 0.95)] == [2, 2, 1, 0]
    assert read(BOXES, outputs, 0.95)[0].present is False


def test_an_expression_whose_pass_failed_has_nothing_but_that(read: Read) -> None:
    reasons = np.array([[0, 2, 1]], np.int32)
    good, failed, cut = read(
        BOXES, [arrays(["a", "", "c"], [[0.5, 0.5, 0.2, 0.2]], [0], [0.9], finish_reasons=reasons)]
    )
    assert (good.finish_reason, good.present) == ("stop", True)
    assert failed.model_dump(exclude={"expression", "referents", "finish_reason"}) == dict.fromkeys(
        ("box_xyxy", "box_cxcywh_normalized", "point_xy", "score", "present")
    )
    assert failed.finish_reason == "error"
    assert (cut.finish_reason, cut.text) == ("length", "c")


@pytest.mark.parametrize(
    ("grammar", "bidirectional", "expressions", "most", "rows"),
    [
        (BOXES, False, 4, None, 1),
        (BOXES, False, 5, None, 2),
        (BOXES, False, 4, 64, 1),  # a box is one, whatever the caller would take
        (POINTS, False, 4, None, 1),
        (POINTS, False, 1, 64, 8),
        (POINTS, False, 4, 1, 1),
        (POINTS, True, 4, 64, 4),
    ],
)
def test_a_request_counts_as_the_rows_that_are_written(
    grammar: Grammar, bidirectional: bool, expressions: int, most: int | None, rows: int
) -> None:
    generation = Generation(grammar=grammar, eos_token_id=1, max_instances=2, bidirectional=bidirectional)
    spec = spec_of(grammar).model_copy(update={"generation": generation})
    assert Generator().requests(spec, expressions, Options(most)) == rows


def test_of_inferences_side_by_side_the_longest_is_told() -> None:
    outputs = [
        {"prefill_ms": np.array([[prefill]], np.float32), "generation_ms": np.array([[generation]], np.float32)}
        for prefill, generation in [(30, 50), (20, 90)]
    ]
    assert Generator().timings_ms(outputs) == {"prefill": 30, "generation": 90}


def test_texts_of_any_letters_pass_as_bytes() -> None:
    texts = ["", "a", "ä 👩\u200d👧 כוס", "x" * 3000]
    assert texts_from_bytes(texts_to_bytes(texts)) == texts


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"finish_reasons": np.full((1, 1), 2, np.int32)}, "failed"),
        ({"answer_scores": np.full((1, 1), 1.5, np.float32)}, "not probabilities"),
        ({"answer_scores": np.zeros((1, 1), np.float32)}, "not probabilities"),
    ],
)
def test_the_golden_inference_tells_an_unsound_model(change: Arrays, fault: str) -> None:
    outputs = arrays(["t"], [], [], [])
    Generator().check_golden([outputs])
    with pytest.raises(ValueError, match=fault):
        Generator().check_golden([outputs | change])
