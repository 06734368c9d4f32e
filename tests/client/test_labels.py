"""Where labels go. The page has the same rule, and its tests read the same file."""

import json

import numpy as np
import pytest

from referent.client.labels import Mark, Size, place_labels, shortened, versions
from referent.core.boxes import iou
from tests.support.label_layouts import FILE, layouts, records

LAYOUTS = layouts()


def rectangles(size: Size, marks: list[Mark]) -> np.ndarray:
    """(N, 4) of the labels that have a place."""
    placed = [
        (label.x, label.y, label.x + mark.sizes[label.version][0], label.y + mark.sizes[label.version][1])
        for mark, label in zip(marks, place_labels(size, marks), strict=True)
        if label
    ]
    return np.array(placed).reshape(-1, 4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_label_lies_on_another_or_on_a_dot_or_outside(name: str) -> None:
    (width, height), marks = LAYOUTS[name]
    placed = rectangles((width, height), marks)
    assert (placed >= 0).all()
    assert (placed <= (width, height, width, height)).all()
    solid = np.vstack([placed, *(np.array([mark.box_xyxy]) for mark in marks if mark.is_dot)])
    overlaps = iou(placed[:, None], solid[None]) > 1e-9
    assert overlaps.sum() == len(placed)  # each with itself


def test_a_label_is_moved_then_shortened_then_a_number() -> None:
    used = {name: {label.version for label in place_labels(*LAYOUTS[name]) if label} for name in LAYOUTS}
    assert used["one"] == {0}
    assert used["corners"] | used["same place"] == {0, 1, 2}
    assert used["scattered"] > {0}
    assert used["narrow"] == {3}
    assert place_labels(*LAYOUTS["no room"]) == [None]


def test_a_label_away_from_its_mark_is_led_there() -> None:
    size, marks = LAYOUTS["same place"]
    led = [label.is_led for label in place_labels(size, marks) if label]
    assert set(led) == {True, False}


def test_a_label_does_not_hide_a_small_neighbour() -> None:
    sizes = ((60.0, 10.0),)
    big, above = Mark((20, 50, 120, 120), False, True, sizes), Mark((22, 40, 40, 48), False, True, sizes)
    label, _ = place_labels((200, 200), [big, above])
    assert label
    place = np.array([label.x, label.y, label.x + 60, label.y + 10])
    assert iou(place, np.array(above.box_xyxy)) == 0


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("the cat", 7, "the cat"),
        ("the man in the red shirt on the left", 24, "the man in…the left"),
        ("  several \n lines\t", 60, "several lines"),
        ("a" * 30, 12, "aaaaaaa…aaaa"),
        ("", 12, ""),
    ],
)
def test_a_text_is_shortened_in_its_middle(text: str, most: int, expected: str) -> None:
    assert shortened(text, most) == expected


def test_a_number_is_all_that_the_best_of_several_leaves_to_the_others() -> None:
    assert versions("the cats", 0.9, 1, 1)[0] == "1 the cats 0.90"
    assert versions("the cats", 0.8, 2, 2) == ["2 0.80", "2"]
    assert versions("the cat", None, 4, None)[0] == "the cat"


def test_the_file_that_the_page_is_tested_with_is_of_this_rule() -> None:
    """`python -m tests.support.label_layouts` writes it."""
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(records()))
