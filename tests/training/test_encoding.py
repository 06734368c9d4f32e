import numpy as np
import pytest

from referent.core.frame import Frame
from referent.training.encoding import token_targets

FRAME = Frame((40, 40), (1, 1), (0, 0), (40, 40))  # shares of a square of 40 pixels


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def cells(row: np.ndarray) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for y, x in np.argwhere(row.reshape(4, 4))}


def test_the_middle_of_a_box_shows_it_and_its_rim_is_unsure() -> None:
    found = token_targets([boxes((0.5, 0.5, 1.0, 1.0))], [None], 4, FRAME)
    middle = {(x, y) for x in (1, 2) for y in (1, 2)}
    assert cells(found["points"][0]) == middle
    assert cells(found["unsure"][0]) == {(x, y) for x in range(4) for y in range(4)} - middle
    assert cells(found["patch_shown"]) == middle


def test_a_box_smaller_than_a_token_has_the_one_that_it_lies_in() -> None:
    found = token_targets([boxes((0.05, 0.9, 0.02, 0.02))], [None], 4, FRAME)
    assert cells(found["points"][0]) == {(0, 3)}


def test_a_mask_says_it_to_the_token() -> None:
    mask = np.zeros((40, 40), bool)
    mask[:20, :20] = True
    found = token_targets([boxes((0.5, 0.5, 1.0, 1.0))], [mask], 4, FRAME)
    assert cells(found["points"][0]) == {(x, y) for x in (0, 1) for y in (0, 1)}
    assert not found["unsure"].any()


def test_several_objects_one_and_none() -> None:
    left, right = (0.25, 0.5, 0.5, 1.0), (0.75, 0.5, 0.5, 1.0)
    found = token_targets([boxes(left, right), boxes(right), boxes()], [None] * 3, 4, FRAME)
    both = {(x, y) for x in range(4) for y in (1, 2)}
    assert [cells(row) for row in found["points"]] == [both, {(x, y) for x, y in both if x > 1}, set()]
    for x, box in ((0, left), (3, right)):
        assert found["patch_boxes"].reshape(4, 4, 4)[1, x].tolist() == pytest.approx(box)


def test_a_token_of_two_boxes_has_the_smaller() -> None:
    small, large = (0.375, 0.375, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)
    found = token_targets([boxes(large), boxes(small)], [None] * 2, 4, FRAME)
    assert found["patch_boxes"].reshape(4, 4, 4)[1, 1].tolist() == pytest.approx(small)
