"""Draws results on the image they belong to."""

import colorsys
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from referent.core.processor import Found

GOLDEN_RATIO = 0.618  # of the colour circle: neighbours differ, however many there are

PADDING = 2
MAX_LABEL_CHARACTERS = 60


def draw(image: Image.Image, results: Sequence[Found]) -> Image.Image:
    """A copy of the RGB image with a box and a label for each object that is there, a colour an expression."""
    canvas = image.copy()
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10, min(canvas.size) // 28))
    for index, found in enumerate(results):
        if found.present is False:
            continue
        colour = _colour(index)
        pen.rectangle(found.box_xyxy, outline=colour, width=max(2, min(canvas.size) // 150))
        words = textwrap.shorten(found.expression, MAX_LABEL_CHARACTERS, placeholder="...")
        label = words if found.score is None else f"{words} {found.score:.2f}"
        width, height = (side + 2 * PADDING for side in pen.textbbox((0, 0), label, font, anchor="lt")[2:])
        left, top, *_ = found.box_xyxy
        x, y = max(0, min(left, canvas.width - width)), max(0, top - height)  # on top of the box, inside the image
        pen.rectangle((x, y, x + width, y + height), fill=colour)
        pen.text((x + PADDING, y + PADDING), label, "black", font, anchor="lt")
    return canvas


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.65, 1)
    return round(255 * red), round(255 * green), round(255 * blue)
