"""Boxes as text, for models that answer in words: `[0.512, 0.300, 0.200, 0.400]`, cx, cy, w, h of the box frame.

Three decimals: two would round a box to 3 pixels of 336.
"""

import re
from collections.abc import Sequence

BoxCxcywh = tuple[float, float, float, float]
NUMBER = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"
FOUR_NUMBERS = re.compile(
    r"(?<![-\d.])" + ",".join([NUMBER] * 4)
)  # neither from the middle of a number nor after a sign
PIXEL_RANGE = 640  # visual-grounding-api's rule for answers in pixels


def format_box(box_cxcywh: Sequence[float]) -> str:
    """Four numbers in 0..1 -> the answer that a model is trained to give."""
    return "[" + ", ".join(f"{value:.3f}" for value in box_cxcywh) + "]"


def parse_box(text: str) -> BoxCxcywh | None:
    """The first four comma-separated non-negative numbers, brackets optional, as cx, cy, w, h in 0..1.

    Numbers beyond 1 are taken for pixels of a 640 square; None where there is no such box.
    """
    match = FOUR_NUMBERS.search(text)
    if match is None:
        return None
    cx, cy, w, h = (float(number) for number in match.groups())
    largest = max(cx, cy, w, h)
    if largest > PIXEL_RANGE:
        return None
    unit = 1 if largest <= 1 else PIXEL_RANGE
    return cx / unit, cy / unit, w / unit, h / unit
