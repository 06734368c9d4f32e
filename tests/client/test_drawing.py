"""Answers drawn on pictures; where their labels go is in test_labels.py."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from referent.client.drawing import colour, draw
from referent.core.answers import Answer, Referent
from tests.support.answers import box_answer, points_answer

WHITE, SIZE = (255, 255, 255), (100, 100)  # of the answers of tests.support
BOX = (30, 40, 80, 90)


def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """As WCAG defines it."""

    def luminance(colour: tuple[int, ...]) -> float:
        shares = [v / 255 for v in colour]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def warmed(answer: Answer, box_xyxy: tuple[float, ...], cells: list[list[float]]) -> Answer:
    return answer.model_copy(update={"heatmap": tuple(map(tuple, cells)), "heatmap_xyxy": box_xyxy})


@pytest.mark.parametrize("background", ["white", "black", "#808080", "#ff7373", "#73ffff"])
def test_a_box_is_seen_on_any_background(background: str) -> None:
    """#ff7373 is the first expression's own colour."""
    drawn = draw(Image.new("RGB", SIZE, background), [box_answer("a", BOX)])
    across = [drawn.getpixel((x, 60)) for x in range(20, 40)]
    assert max(contrast(a, b) for a, b in pairwise(across)) > 3


@pytest.mark.parametrize("index", range(12))
def test_black_text_is_read_on_every_colour(index: int) -> None:
    assert contrast(colour(index), (0, 0, 0)) > 4.5


def test_neighbouring_expressions_have_colours_of_their_own() -> None:
    colours = np.array([colour(index) for index in range(8)], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(8, dtype=bool)].min() > 40


def test_lines_grow_with_the_picture() -> None:
    widths = []
    for width, height in ((200, 100), (1200, 900), (4000, 3000)):
        box = np.array([0.25 * width, 0.25 * height, 0.75 * width, 0.9 * height])
        answer = Answer.of("a", [Referent.of_box("a", box, (width, height))], present=True)
        row = np.asarray(draw(Image.new("RGB", (width, height), "white"), [answer]))[height // 2]
        widths.append((row != 255).any(-1).sum() / 2)
    assert widths[0] < widths[1] < widths[2]
    assert widths[0] >= 4


def test_a_dot_is_drawn_above_boxes_and_no_label_is_on_it() -> None:
    point = (55, 60)
    drawn = draw(Image.new("RGB", SIZE, "white"), [points_answer("a", point), box_answer("b", BOX)])
    assert drawn.getpixel(point) == colour(0)


def test_a_true_box_is_dashed() -> None:
    row = [draw(Image.new("RGB", SIZE, "#808080"), [], [BOX]).getpixel((x, BOX[1])) for x in range(BOX[0], BOX[2])]
    assert {WHITE, (0, 0, 0)} == set(row)


def test_a_legend_below_the_picture_has_the_words_that_find_no_room() -> None:
    narrow = Image.new("RGB", (30, 100), "white")
    drawn = draw(narrow, [box_answer("the second cat from the left", (2, 2, 25, 90), 0.5, True)])
    assert drawn.width > 30
    assert drawn.height > 100
    assert (np.asarray(drawn)[100:] != 255).any()
    assert (np.asarray(drawn)[:100, 30:] == 255).all()


@pytest.mark.parametrize(
    "words",
    ["é ß ø Ł π Ж", "中文 日本語", "עברית", "two\nlines\tand a \x00 and \u202e turned", "😀", "", "x" * 2000],
    ids=["european", "east asian", "hebrew", "controls", "emoji", "empty", "long"],
)
def test_any_words_are_drawn(words: str) -> None:
    picture = Image.new("RGB", (400, 300), "white")
    assert draw(picture, [box_answer(words, BOX)]).size == picture.size


def test_letters_beyond_english_are_letters() -> None:
    picture = Image.new("RGB", (400, 300), "white")
    drawn = [np.asarray(draw(picture, [box_answer(word, BOX)])) for word in ("é", "Ж", "\ufffd")]
    assert (drawn[0] != drawn[1]).any()
    assert (drawn[0] != drawn[2]).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_any_picture_is_drawn_on(size: tuple[int, int]) -> None:
    drawn = draw(Image.new("RGB", size), [box_answer("a", (0, 0, 1, 1), 0.5, True), points_answer("b", (0, 0))])
    assert drawn.width >= size[0]
    assert drawn.height >= size[1]


def test_a_heat_map_tints_what_it_covers() -> None:
    picture = Image.new("RGB", SIZE, "white")
    hot = [[0.0, 0.0], [0.0, 1.0]]
    absent = box_answer("a", BOX, 0.1, False)
    drawn = draw(picture, [warmed(absent, (0, 0, 100, 100), hot)])
    assert drawn.getpixel((5, 5)) == WHITE
    assert drawn.getpixel((95, 95)) != WHITE


@pytest.mark.parametrize(
    ("frame", "hottest", "coldest"),
    [
        ((-100, 0, 200, 300), (70, 50), (2, 98)),  # beyond the picture, as a letterbox is
        ((40, 40, 60, 60), (56, 44), (20, 20)),  # within it
        ((200, 0, 300, 100), None, (50, 50)),  # outside it
    ],
)
def test_a_heat_map_lies_in_its_frame(
    frame: tuple[int, ...], hottest: tuple[int, int] | None, coldest: tuple[int, int]
) -> None:
    cells = [[0.0] * 3, [0.0] * 3, [0.0] * 3]
    cells[0] = [0.0, 0.3, 1.0] if frame[0] > 0 else [0.0, 1.0, 0.0]
    drawn = draw(Image.new("RGB", SIZE, "white"), [warmed(box_answer("a", BOX, 0.1, False), frame, cells)])
    tint = 255 - np.asarray(drawn).min(-1).astype(int)
    if hottest:
        assert tint[hottest[1], hottest[0]] > 60 > 2 * tint[coldest[1], coldest[0]]
    else:
        assert tint.max() == 0


def test_the_picture_itself_stays_as_it_is() -> None:
    picture = Image.new("RGB", SIZE, "white")
    draw(picture, [box_answer("a", BOX, 0.9, True)])
    assert picture.getcolors() == [(100 * 100, WHITE)]


def test_a_true_box_may_reach_far_beyond_the_picture() -> None:
    picture = Image.new("RGB", SIZE, "#404040")
    far, near = (draw(picture, [], [box]) for box in ((30, 40, 1e12, 1e12), (30, 40, 200, 200)))
    assert far.getpixel((30, 60)) == near.getpixel((30, 60)) != picture.getpixel((30, 60))
    with pytest.raises(ValueError, match="are not all numbers"):
        draw(picture, [], [(0, 0, float("nan"), 9)])
