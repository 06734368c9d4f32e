"""Places labels: inside the picture, without overlapping each other, and hiding as little as possible of the marks.

web/src/labels.ts has the same rule; both are tested against tests/client/label_layouts.json.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from referent.core.boxes import Bools, Box, Floats

Size = tuple[float, float]

MOST_LABELS = 128  # more than a picture has room for; further marks get no label
HIDDEN = 0.35  # a shorter label is tried if the hidden shares of marks add up to more
REACH = 4  # how far a label with words may be from its mark, in heights of the label
RELUCTANCE = 0.02  # a place of `_around` must hide so much less than an earlier one to be preferred
VERSIONS = (60, 24, 12)  # characters of an expression in a label, and in shorter ones
CELLS = 32  # at most so many rows and columns has the grid that is searched if there is no room around a mark


class Mark(NamedTuple):
    """What a label is for. Lengths are pixels of the picture."""

    box_xyxy: Box  # a box; of a point, the square around its dot
    is_dot: bool  # no label covers a dot
    is_first: bool  # the mark whose label has the expression's words; it is placed before the others
    sizes: tuple[Size, ...]  # (width, height) of the label's versions, the longest first


class Label(NamedTuple):
    """Where a label is."""

    version: int  # which of the mark's sizes
    x: float  # of its top left corner
    y: float
    is_led: bool  # it is away from its mark, and a line connects them


def place_labels(picture: Size, marks: Sequence[Mark]) -> list[Label | None]:
    """A place for each mark's label in a picture of (width, height); None if there is no room for any version.

    The longest version with words that hides little is placed around its mark. If there is none, a label with words is
    placed not far away, connected by a line. If that fails too, the last version, a number, is placed around its mark
    or anywhere.
    """
    places: list[Label | None] = [None] * len(marks)
    boxes = np.array([mark.box_xyxy for mark in marks], float).reshape(-1, 4)
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
    space = _Space(picture, boxes, areas, boxes[[mark.is_dot for mark in marks]])
    order = sorted(range(len(marks)), key=lambda index: (not marks[index].is_first, areas[index], index))
    for index in order[:MOST_LABELS]:
        label = places[index] = space.find(marks[index])
        if label:
            space.take((label.x, label.y), marks[index].sizes[label.version])
    return places


class _Space:
    """What is free in the picture."""

    def __init__(self, picture: Size, boxes: Floats, areas: Floats, taken: Floats) -> None:
        self._picture, self._boxes, self._areas, self._taken = picture, boxes, areas, taken

    def take(self, corner: Size, size: Size) -> None:
        self._taken = np.vstack([self._taken, (*corner, corner[0] + size[0], corner[1] + size[1])])

    def find(self, mark: Mark) -> Label | None:
        number = len(mark.sizes) - 1
        for version in range(number):
            if label := self._near(mark, version, HIDDEN):
                return label
        for version in range(number if mark.is_first else 0):
            if label := self._away(mark, version, REACH * mark.sizes[version][1]):
                return label
        return self._near(mark, number, math.inf) or self._away(mark, number, math.inf)

    def _near(self, mark: Mark, version: int, most: float) -> Label | None:
        """The place around the mark that hides least; None if it hides more than `most`."""
        corners = _around(self._picture, mark.box_xyxy, mark.sizes[version])
        places = np.hstack([corners, corners + mark.sizes[version]])
        hidden = (_common(places, self._boxes) / self._areas).sum(1) + RELUCTANCE * np.arange(len(corners))
        costs = np.where(self._is_free(places), np.round(hidden, 6), np.inf)
        best = int(costs.argmin())
        is_good = np.isfinite(costs[best]) and costs[best] <= most
        return _label(version, corners[best], False) if is_good else None

    def _away(self, mark: Mark, version: int, reach: float) -> Label | None:
        """The free place of a grid that is nearest to the mark, from edge to edge; None if it is beyond `reach`."""
        size = np.array(mark.sizes[version])
        step = max(size[1] / 2, *(side / CELLS for side in self._picture))
        columns, rows = (int(max(0, side - own) // step) + 1 for side, own in zip(self._picture, size, strict=True))
        corners = np.stack(np.meshgrid(np.arange(columns) * step, np.arange(rows) * step), -1).reshape(-1, 2)
        places = np.hstack([corners, corners + size])
        x1, y1, x2, y2 = mark.box_xyxy
        gaps = np.maximum(0, np.maximum((x1, y1) - places[:, 2:], places[:, :2] - (x2, y2)))
        distances = np.where(self._is_free(places), np.round((gaps**2).sum(1), 3), np.inf)
        best = int(distances.argmin())
        is_good = np.isfinite(distances[best]) and distances[best] <= reach**2
        return _label(version, corners[best], True) if is_good else None

    def _is_free(self, places: Floats) -> Bools:
        """(N, 4) -> (N,): whether a place is inside the picture and overlaps nothing that is taken."""
        inside = (places[:, 2] <= self._picture[0] + 1e-6) & (places[:, 3] <= self._picture[1] + 1e-6)
        return np.asarray(inside & ~(_common(places, self._taken) > 1e-6).any(1))


def _label(version: int, corner: Floats, is_led: bool) -> Label:
    return Label(version, float(corner[0]), float(corner[1]), is_led)


def _around(picture: Size, box: Box, size: Size) -> Floats:
    """Top left corners (12, 2) around the box and inside it, in order of preference; moved into the picture."""
    (x1, y1, x2, y2), (width, height) = box, size
    left, right, above, below = x2 - width, x1 - width, y1 - height, y2 - height
    corners = np.array([
        (x1, above), (left, above), (x1, y2), (left, y2), (x2, y1), (right, y1), (x2, below), (right, below),
        (x1, y1), (left, y1), (x1, below), (left, below),
    ])  # fmt: skip
    return np.asarray(np.clip(corners, 0, np.maximum(0, np.subtract(picture, size))))


def _common(a: Floats, b: Floats) -> Floats:
    """Areas that each of (A, 4) has in common with each of (B, 4): (A, B)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - low, 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def versions(expression: str, score: float | None, number: int, rank: int | None) -> list[str]:
    """What a mark's label may say, the longest first; the last is its number alone.

    `rank` is the referent's place among several, from 1; None for an expression's only one. The first has the words.
    """
    sure = [] if score is None else [f"{score:.2f}"]
    if rank is not None and rank > 1:
        texts = [[str(number), *sure]]
    else:
        start = [] if rank is None else [str(number)]
        texts = [[*start, shortened(expression, most), *sure] for most in VERSIONS]
    return [*map(" ".join, texts), str(number)]


def short_form(expression: str, version: int) -> str | None:
    """The words of the expression in this version of its label; None for the version that is only a number."""
    return shortened(expression, VERSIONS[version]) if version < len(VERSIONS) else None


def shortened(text: str, most: int) -> str:
    """The text in one line of at most so many characters. The middle is left out, since ends tell expressions apart; if
    possible, whole words are left out."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    tail = (most - 1) * 2 // 5
    start, end = line[: most - 1 - tail], line[len(line) - tail :]
    start = start.rpartition(" ")[0] or start
    end = end.partition(" ")[2] or end
    return f"{start}…{end}"
