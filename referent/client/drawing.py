"""Draws answers on the image they belong to: heat maps, then boxes and dots, then labels, then a legend below it."""

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw

from referent.client.labels import Label, Mark, Size, place_labels, short_form, shortened, versions
from referent.client.lettering import font_for, printable, width_of
from referent.core.answers import Answer, Point
from referent.core.boxes import Box

Colour = tuple[int, int, int]

GOLDEN_RATIO = 0.618  # of the colour circle, between expressions: neighbours differ, however many there are
HALO, PAPER, INK = "black", "white", "black"
WARMEST = 0.6  # how much of the colour covers the picture where a heat map is 1
LEGEND_EMS = 30  # width of a legend below a narrower picture, at most


@dataclass(frozen=True)
class Style:
    """Sizes in pixels, in proportion to the picture."""

    type: int
    line: int
    halo: int  # on either side of a line, so that it is visible on any background

    @classmethod
    def of(cls, size: tuple[int, int]) -> "Style":
        side = math.sqrt(size[0] * size[1])
        line = max(2, round(side / 300))
        return cls(max(11, round(side / 45)), line, max(1, round(line / 2)))

    @property
    def dot(self) -> int:  # radius
        return 3 * self.line

    @property
    def padding(self) -> int:
        return max(2, self.type // 5)


@dataclass(frozen=True)
class Drawn:
    """A referent with what is drawn for it."""

    expression: int  # its place in the request
    number: int  # among all that are drawn in the picture, from 1
    box_xyxy: Box | None
    point_xy: Point | None
    words: str  # of its expression
    score: float | None
    texts: list[str]  # of its label, the longest first
    is_first: bool


def draw(image: Image.Image, answers: Sequence[Answer], truths: Sequence[Box] = ()) -> Image.Image:
    """A copy of the RGB image with a box or a dot and a label for each referent; each expression has a colour.

    True boxes (x1, y1, x2, y2 in pixels) are drawn in white dashes, heat maps below everything else. Labels are inside
    the image and don't overlap each other. Where there is no room for an expression's words, its label is a number, and
    a legend below the image has the words. The result is then higher than the image, and wider if the image is narrow;
    the image is its top left part. Raises ValueError for a true box that is not of numbers.
    """
    if any(not all(map(math.isfinite, box)) for box in truths):
        raise ValueError(f"the true boxes {list(truths)} are not all numbers: give x1, y1, x2, y2 in pixels")
    style = Style.of(image.size)
    drawn = list(_drawn(answers))
    marks = [_mark(each, style) for each in drawn]
    labels = place_labels(image.size, marks)
    canvas = image.copy()
    for index, answer in enumerate(answers):
        _warm(canvas, answer, colour(index))
    pen = ImageDraw.Draw(canvas)
    for each, mark in sorted(zip(drawn, marks, strict=True), key=lambda pair: -_area(pair[1].box_xyxy)):
        _outline(pen, each, mark, style)
    for box in truths:
        _dashes(pen, _clipped(box, image.size, 4 * style.line), style)
    for each, mark, label in zip(drawn, marks, labels, strict=True):
        if label and label.is_led:
            _lead(pen, mark, label, colour(each.expression), style)
    for each, mark, label in zip(drawn, marks, labels, strict=True):
        if label:
            text = each.texts[label.version]
            _tag(pen, (label.x, label.y), mark.sizes[label.version], text, colour(each.expression), style)
    unnamed = _unnamed(drawn, labels)
    return _with_legend(canvas, answers, drawn, unnamed, style) if unnamed else canvas


def colour(index: int) -> Colour:
    """The colour of the index-th expression; black text on it is easy to read."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.55, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def _drawn(answers: Sequence[Answer]) -> Iterator[Drawn]:
    number = 0
    for expression, answer in enumerate(answers):
        for rank, referent in enumerate(answer.referents, 1):
            number += 1
            several = len(answer.referents) > 1
            texts = versions(answer.expression, referent.score, number, rank if several else None)
            yield Drawn(
                expression,
                number,
                referent.box_xyxy,
                referent.point_xy,
                answer.expression,
                referent.score,
                texts,
                rank == 1,
            )


def _unnamed(drawn: Sequence[Drawn], labels: Sequence[Label | None]) -> list[int]:
    """Expressions whose label doesn't show them: it is missing, a number, or a short form that others have too."""
    firsts = [(each, label) for each, label in zip(drawn, labels, strict=True) if each.is_first]
    said = [label and short_form(each.words, label.version) for each, label in firsts]
    whole: dict[str | None, set[str]] = {}
    for (each, _), words in zip(firsts, said, strict=True):
        whole.setdefault(words, set()).add(each.words)
    return [
        each.expression for (each, _), words in zip(firsts, said, strict=True) if words is None or len(whole[words]) > 1
    ]


def _mark(drawn: Drawn, style: Style) -> Mark:
    reach = style.line / 2 + style.halo
    if drawn.box_xyxy is not None:
        x1, y1, x2, y2 = drawn.box_xyxy
    else:
        assert drawn.point_xy is not None
        (x1, y1), (x2, y2) = drawn.point_xy, drawn.point_xy
        reach += style.dot
    box = (x1 - reach, y1 - reach, x2 + reach, y2 + reach)
    return Mark(box, drawn.box_xyxy is None, drawn.is_first, tuple(_label_size(text, style) for text in drawn.texts))


def _label_size(text: str, style: Style) -> Size:
    return width_of(text, style.type) + 2 * style.padding, style.type + 2 * style.padding


def _warm(canvas: Image.Image, answer: Answer, tint: Colour) -> None:
    """Tints the canvas where the answer's heat map is high."""
    if answer.heatmap is None or answer.heatmap_xyxy is None:
        return
    cells = Image.fromarray(np.round(255 * WARMEST * np.clip(answer.heatmap, 0, 1)).astype(np.uint8))
    x1, y1, x2, y2 = answer.heatmap_xyxy  # may extend beyond the picture, or cover only part of it
    left, top = max(0, round(x1)), max(0, round(y1))
    right, bottom = min(canvas.width, round(x2)), min(canvas.height, round(y2))
    if right <= left or bottom <= top:
        return
    across, down = cells.width / (x2 - x1), cells.height / (y2 - y1)
    part = (
        max(0, (left - x1) * across),
        max(0, (top - y1) * down),
        min(cells.width, (right - x1) * across),
        min(cells.height, (bottom - y1) * down),
    )
    mask = cells.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=part)
    canvas.paste(tint, (left, top, right, bottom), mask)


def _outline(pen: ImageDraw.ImageDraw, drawn: Drawn, mark: Mark, style: Style) -> None:
    """A coloured line between two dark ones, or a coloured dot in a dark ring with a light one around it."""
    tint = colour(drawn.expression)
    if drawn.box_xyxy is not None:
        around, width = mark.box_xyxy, style.line + 2 * style.halo
        pen.rectangle(_whole(around), outline=HALO, width=width)
        pen.rectangle(_whole(_grown(around, -style.halo)), outline=tint, width=style.line)
    else:
        assert drawn.point_xy is not None
        pen.circle(drawn.point_xy, style.dot + 2 * style.halo, fill=HALO)
        pen.circle(drawn.point_xy, style.dot + style.halo, fill=PAPER)
        pen.circle(drawn.point_xy, style.dot, fill=tint, outline=HALO, width=style.halo)


def _dashes(pen: ImageDraw.ImageDraw, box: Box, style: Style) -> None:
    reach = style.line / 2 + style.halo
    pen.rectangle(_whole(_grown(box, reach)), outline=HALO, width=style.line + 2 * style.halo)
    x1, y1, x2, y2 = box
    dash = 3 * style.line
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        (x, y), (across, down) = start, (end[0] - start[0], end[1] - start[1])
        steps = max(1, round(math.hypot(across, down) / (2 * dash)))
        for step in range(steps):
            share, until = step / steps, (step + 0.6) / steps
            ends = [(x + across * share, y + down * share), (x + across * until, y + down * until)]
            pen.line(ends, fill=PAPER, width=style.line)


def _lead(pen: ImageDraw.ImageDraw, mark: Mark, label: Label, tint: Colour, style: Style) -> None:
    """A line from the label to the nearest point of its mark."""
    width, height = mark.sizes[label.version]
    x, y = label.x + width / 2, label.y + height / 2
    x1, y1, x2, y2 = mark.box_xyxy
    ends = [(x, y), (min(max(x, x1), x2), min(max(y, y1), y2))]
    pen.line(ends, fill=HALO, width=style.halo + 2)
    pen.line(ends, fill=tint, width=style.halo)


def _tag(
    pen: ImageDraw.ImageDraw, corner: tuple[float, float], size: Size, text: str, tint: Colour, style: Style
) -> None:
    (x, y), (width, height) = corner, size
    pen.rectangle(_whole((x, y, x + width, y + height)), fill=tint, outline=HALO)
    pen.text((x + width / 2, y + height / 2), printable(text), INK, font_for(text, style.type), anchor="mm")


def _with_legend(
    canvas: Image.Image, answers: Sequence[Answer], drawn: Sequence[Drawn], unnamed: Sequence[int], style: Style
) -> Image.Image:
    """The picture above a line for each unnamed expression: numbers, words, and the score of a single referent."""
    numbers = {index: [each.number for each in drawn if each.expression == index] for index in unnamed}
    spans = {index: str(own[0]) if len(own) == 1 else f"{own[0]}–{own[-1]}" for index, own in numbers.items()}
    gap, row = style.padding, style.type + 4 * style.padding
    indent = 3 * gap + max(_label_size(span, style)[0] for span in spans.values())
    scores = {each.expression: each.score for each in drawn if each.is_first}
    ends = {
        index: "" if len(own) > 1 or scores[index] is None else f" {scores[index]:.2f}"
        for index, own in numbers.items()
    }
    longest = max(width_of(shortened(answers[index].expression, 200) + ends[index], style.type) for index in unnamed)
    width = math.ceil(max(canvas.width, min(indent + longest + 2 * gap, LEGEND_EMS * style.type)))
    sheet = Image.new("RGB", (width, canvas.height + row * len(spans) + gap), PAPER)
    sheet.paste(canvas, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for place, (index, span) in enumerate(spans.items()):
        y = canvas.height + gap + place * row
        _tag(pen, (gap, y + gap), _label_size(span, style), span, colour(index), style)
        room = width - indent - gap - width_of(ends[index], style.type)
        text = _fitting(answers[index].expression, room, style) + ends[index]
        pen.text((indent, y + row / 2), printable(text), INK, font_for(text, style.type), anchor="lm")
    return sheet


def _fitting(text: str, width: float, style: Style) -> str:
    """The text, shortened until it is no wider than `width` pixels."""
    for most in chain(range(200, 20, -10), range(20, 1, -1)):
        if width_of(short := shortened(text, most), style.type) <= width:
            return short
    return short


def _whole(box: Box) -> Box:
    """The box in whole pixels, with its corners in order."""
    x1, y1, x2, y2 = box
    return round(x1), round(y1), max(round(x1), round(x2) - 1), max(round(y1), round(y2) - 1)


def _clipped(box: Box, size: tuple[int, int], beyond: float) -> Box:
    """The box, with sides that are far outside the picture moved to so many pixels beyond it."""
    x1, x2 = (min(max(x, -beyond), size[0] + beyond) for x in box[::2])
    y1, y2 = (min(max(y, -beyond), size[1] + beyond) for y in box[1::2])
    return x1, y1, x2, y2


def _grown(box: Box, by: float) -> Box:
    """The box, larger by so much on each side, or smaller if negative, but never beyond its middle."""
    x1, y1, x2, y2 = box
    across, down = max(by, (x1 - x2) / 2), max(by, (y1 - y2) / 2)
    return x1 - across, y1 - down, x2 + across, y2 + down


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
