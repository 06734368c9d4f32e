"""Reads boxes and points from the texts of published models, in the form that each family of models writes.

No text raises an error: one that cannot be read is an invalid prediction, with a reason.
"""

import re
from typing import Literal, NamedTuple

Numbers = tuple[float, ...]
NUMBER = r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*"
FOUR = ",".join([NUMBER] * 4)
NOTHING = re.compile(r"\s*(?:there (?:are|is) none|none|<box>\s*none\s*</box>|\[\s*\])\s*\.?\s*", re.IGNORECASE)
POINTS_TAG = re.compile(r'<points?\b((?:\s+[xy]\d*\s*=\s*"[^"<>]{0,32}")*)')
COORDINATE = re.compile(r'\s([xy])(\d*)\s*=\s*"' + NUMBER + '"')


class Reading(NamedTuple):
    """Boxes x1, y1, x2, y2 and points x, y, in shares of the image or in its pixels; or why there are none.

    Without boxes, points and a reason, the text says that nothing is there.
    """

    boxes: tuple[Numbers, ...] = ()
    points: tuple[Numbers, ...] = ()
    unit: Literal["share", "pixel"] = "share"
    reason: str | None = None

    def boxes_in_pixels(self, size: tuple[int, int] | None) -> tuple[Numbers, ...]:
        """The boxes in pixels of an image of `size` (width, height).

        Raises ValueError if `size` is needed but None.
        """
        if self.unit == "pixel" or not self.boxes:
            return self.boxes
        if size is None:
            raise ValueError("the boxes are shares of an image whose size is not known")
        width, height = size
        return tuple((x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in self.boxes)


class Form(NamedTuple):
    """How a family of models writes a box: where its four numbers are, their order and their unit."""

    box: re.Pattern[str]
    side: float | None  # the whole width or height in these numbers; None: pixels of the image
    order: Literal["xyxy", "yxyx", "cxcywh"] = "xyxy"
    offset: float = 0.0  # added to the number of a bin to get its middle
    beyond: float | None = None  # the side to use instead if a number is greater than `side`


OBJECT = re.compile(r'"bbox_2d"\s*:\s*\[' + FOUR + r"\]")
LIST = re.compile(r"\[" + FOUR + r"\]")
TAG = re.compile(r"<box>\D{0,9}(\d{1,9})\D{1,9}(\d{1,9})\D{1,9}(\d{1,9})\D{1,9}(\d{1,9})\D{0,9}</box>")
FORMS = {
    "llava": Form(LIST, 1),
    "internvl": Form(LIST, 1000),
    "percent": Form(LIST, 100),
    "pixels": Form(LIST, None),
    "qwen2.5-vl": Form(OBJECT, None),
    "qwen3-vl": Form(OBJECT, 1000),
    "locateanything": Form(TAG, 1000),
    "rex-omni": Form(re.compile(r"<(\d{1,3})>" * 4), 999),
    "florence-2": Form(re.compile(r"<loc_(\d{1,3})>" * 4), 1000, offset=0.5),
    "paligemma": Form(re.compile(r"<loc(\d{4})>" * 4), 1024, "yxyx"),
    # visual-grounding-api's rule: brackets may be missing, and numbers beyond 1 are pixels of a square of 640;
    # the pattern does not start in the middle of a number or after a sign
    "vg": Form(re.compile(r"(?<![-\d.])" + FOUR), 1, "cxcywh", beyond=640),
}
BEYOND = "a number beyond the side of the image"
TOLD_BY_SYNTAX = ("paligemma", "florence-2", "locateanything", "rex-omni")


def read_text(text: str, form: str | None = None) -> Reading:
    """What a text says, read in a form of `FORMS` or in the one that its syntax shows; points are always percent."""
    if NOTHING.fullmatch(text):
        return Reading()
    if points := _points(text):
        inside = tuple(point for point in points if max(point) <= 1)
        return Reading(points=inside) if inside else Reading(reason=BEYOND)
    if form is None:
        form = next((name for name in TOLD_BY_SYNTAX if FORMS[name].box.search(text)), "llava")
        rows = _rows(OBJECT, text) or _rows(LIST, text)
        if form == "llava" and rows and max(map(max, rows)) > 1:
            return Reading(reason="the numbers may be pixels, percent or thousandths: name the form")
    return _read_boxes(text, FORMS[form])


def _read_boxes(text: str, form: Form) -> Reading:
    rows = _rows(form.box, text)
    if not rows:
        return Reading(reason="no box and no point in the text")
    side = form.side
    if side is not None and (largest := max(map(max, rows))) > side:
        if form.beyond is None or largest > form.beyond:
            rows = [row for row in rows if max(row) <= side]
        else:
            side = form.beyond
    if not rows:
        return Reading(reason=BEYOND)
    boxes = []
    for row in rows:
        a, b, c, d = ((number + form.offset) / (side or 1) for number in row)
        orders = {
            "xyxy": (a, b, c, d), "yxyx": (b, a, d, c), "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
        }  # fmt: skip
        x1, y1, x2, y2 = box = orders[form.order]
        if x2 > x1 and y2 > y1:
            boxes.append(box)
    if not boxes:
        return Reading(reason="a box without area, or with its corners out of order")
    return Reading(tuple(boxes), unit="share" if side else "pixel")


def _points(text: str) -> list[Numbers]:
    """The pairs of every tag, in shares; if a list was cut off, its complete pairs."""
    found: list[Numbers] = []
    for tag in POINTS_TAG.findall(text):
        axes: dict[str, dict[str, float]] = {"x": {}, "y": {}}
        for axis, index, number in COORDINATE.findall(tag):
            axes[axis][index] = float(number) / 100
        found += [(x, axes["y"][index]) for index, x in axes["x"].items() if index in axes["y"]]
    return found


def _rows(pattern: re.Pattern[str], text: str) -> list[Numbers]:
    return [tuple(map(float, match.groups())) for match in pattern.finditer(text)]
