"""Where labels go: on no other label, inside the picture, hiding as little as can be of what is marked.

web/src/labels.ts has the same rule; tests/client/label_layouts.json holds both to it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from referent.core.boxes import Bools, Box, Floats

Size = tuple[float, float]

MOST_LABELS = 128  # more than a picture has room for; the marks after them go without
HIDDEN = 0.35  # shares of marks that a label may hide, summed, before a shorter one is tried
REACH = 4  # heights of a label with words that it may be away from its mark
RELUCTANCE = 0.02  # a place of `_around` must hide so much less than the one before it to be taken instead
VERSIONS = (60, 24, 12)  # characters of an expression in a label, and in shorter ones
CELLS = 32  # of the grid that is searched where there is no room around a mark, each way at most


class Mark(NamedTuple):
    """What a label is for. Lengths are pixels of the picture."""

    box_xyxy: Box  # a box; of a point, the square around its dot
    is_dot: bool  # no label covers a dot
    is_first: bool  # the mark that has the expression's words; it is served before the others
    sizes: tuple[Size, ...]  # (width, height) of the label's versions, the longest first


class Label(NamedTuple):
    """Where a label is."""

    version: int  # which of the mark's sizes
    x: float  # of its top left corner
    y: float
    is_led: bool  # it is away from its mark, and a line leads there


def place_labels(picture: Size, marks: Sequence[Mark]) -> list[Label | None]:
    """A place for each mark's label in a picture of (width, height); None where there is no room for any version.

    A label with words stands around its mark, the longest version that hides little; else not far away, led by a
    line. Else the last version, a number, stands around its mark, or else anywhere.
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
        """The place around the mark that hides least, where that is no more than `most`."""
        corners = _around(self._picture, mark.box_xyxy, mark.sizes[version])
        places = np.hstack([corners, corners + mark.sizes[version]])
        hidden = (_common(places, self._boxes) / self._areas).sum(1) + RELUCTANCE * np.arange(len(corners))
        costs = np.where(self._is_free(places), np.round(hidden, 6), np.inf)
        best = int(costs.argmin())
        is_good = np.isfinite(costs[best]) and costs[best] <= most
        return _label(version, corners[best], False) if is_good else None

    def _away(self, mark: Mark, version: int, reach: float) -> Label | None:
        """The free place of a grid that is nearest to the mark, from edge to edge, where that is within reach."""
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
        """(N, 4) -> (N,): inside the picture, and on nothing that is taken."""
        inside = (places[:, 2] <= self._picture[0] + 1e-6) & (places[:, 3] <= self._picture[1] + 1e-6)
        return np.asarray(inside & ~(_common(places, self._taken) > 1e-6).any(1))


def _label(version: int, corner: Floats, is_led: bool) -> Label:
    return Label(version, float(corner[0]), float(corner[1]), is_led)


def _around(picture: Size, box: Box, size: Size) -> Floats:
    """Top left corners (12, 2) around the box and inside it, the best liked first; moved into the picture."""
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

    `rank` is the referent's place among several, from 1 on; None for an expression's only one. The best has the words.
    """
    sure = [] if score is None else [f"{score:.2f}"]
    if rank is not None and rank > 1:
        texts = [[str(number), *sure]]
    else:
        start = [] if rank is None else [str(number)]
        texts = [[*start, shortened(expression, most), *sure] for most in VERSIONS]
    return [*map(" ".join, texts), str(number)]


def short_form(expression: str, version: int) -> str | None:
    """The words of it in the first label's version; None in that of the number alone."""
    return shortened(expression, VERSIONS[version]) if version < len(VERSIONS) else None


def shortened(text: str, most: int) -> str:
    """The text in one line, its middle left out where it has more than so many characters: ends tell things apart.

    Whole words are left out where the ends have any.
    """
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    tail = (most - 1) * 2 // 5
    start, end = line[: most - 1 - tail], line[len(line) - tail :]
    start = start.rpartition(" ")[0] or start
    end = end.partition(" ")[2] or end
    return f"{start}…{end}"
