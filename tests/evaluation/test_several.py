from itertools import permutations

import numpy as np
import pytest

from referent.core.boxes import Floats, iou
from referent.evaluation.several import matches, score_order_matches, several_figures

A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
NEAR_A, HALF_A, NOTHING = (0, 0, 10, 9), (0, 0, 5, 10), (60, 60, 70, 70)


def boxes(*rows: tuple[float, ...]) -> Floats:
    return np.array(rows, np.float64).reshape(-1, 4)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([A], [A], 1),
        ([A, NEAR_A], [A], 1),  # a duplicate is no second hit
        ([HALF_A], [A], 1),  # exactly 0.5
        ([NOTHING], [A], 0),
        ([], [A], 0),
        ([A], [], 0),
        ([B, A, NOTHING], [A, B, C], 2),
        ([(float("nan"),) * 4, A], [A], 1),
        ([(10, 10, 0, 0)], [A], 0),  # swapped corners
    ],
)
def test_hits_of_hand_made_cases(predicted: list, true: list, expected: int) -> None:
    assert matches(boxes(*predicted), boxes(*true)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_hits_are_the_most_that_any_pairing_has(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, true = (
        np.concatenate([corner := rng.uniform(0, 3, (count, 2)), corner + rng.uniform(3, 6, (count, 2))], 1)
        for count in rng.integers(0, 5, 2)
    )
    few, many = sorted((predicted, true), key=len)
    best = max(
        sum(bool(iou(few[i], many[j]) >= 0.5) for i, j in enumerate(chosen))
        for chosen in permutations(range(len(many)), len(few))
    )
    assert matches(predicted, true) == best


def test_the_better_scored_of_two_takes_the_box() -> None:
    assert score_order_matches(boxes(NEAR_A, A, B), boxes(A, B)).tolist() == [True, False, True]
    assert score_order_matches(boxes(), boxes(A)).tolist() == []
    assert score_order_matches(boxes(A), boxes()).tolist() == [False]


def test_figures_by_hand() -> None:
    predicted = [boxes(A, B), boxes(A), boxes(), boxes(A), boxes(NOTHING), boxes()]
    true = [boxes(B, A), boxes(A, B, C), boxes(), boxes(), boxes(A), boxes(C)]
    figures = several_figures(predicted, true)
    assert figures["n"] == 6
    assert figures["pr@f1=1"] == pytest.approx(2 / 6)  # the first, and nothing where nothing is
    assert (figures["n_acc"], figures["t_acc"]) == (1 / 2, 3 / 4)
    assert (figures["precision"], figures["recall"]) == (3 / 5, 3 / 7)
    assert figures["f1"] == 6 / 12
    assert figures["count_error"] == pytest.approx((0 + 2 + 0 + 1 + 0 + 1) / 6)
    assert {name: row["n"] for name, row in figures["by referents"].items()} == {"0": 2, "1": 2, "2": 1, "3": 1}
    assert (figures["by referents"]["0"]["f1"], figures["by referents"]["0"]["t_acc"]) == (0, None)
    assert (figures["by referents"]["2"]["pr@f1=1"], figures["by referents"]["2"]["n_acc"]) == (1, None)


def test_four_and_more_are_one_group() -> None:
    figures = several_figures([boxes(), boxes()], [boxes(*[A] * 4), boxes(*[A] * 9)])
    assert figures["by referents"]["4+"]["count_error"] == 6.5
