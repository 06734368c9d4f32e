"""Draws answers on the image they belong to."""

import colorsys
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from referent.core.answers import Answer

GOLDEN_RATIO = 0.618  # of the colour circle: neighbours differ, however many there are

PADDING = 2
MAX_LABEL_CHARACTERS = 60


def draw(image: Image.Image, answers: Sequence[Answer]) -> Image.Image:
    """A copy of the RGB image with a box or a dot, and a label, for each referent; a colour an expression."""
    canvas = image.copy()
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10, min(canvas.size) // 28))
    line = max(2, min(canvas.size) // 150)
    for index, answer in enumerate(answers):
        colour = _colour(index)
        for referent in answer.referents:
            if referent.box_xyxy is not None:
                pen.rectangle(referent.box_xyxy, outline=colour, width=line)
                left, top, *_ = referent.box_xyxy
            elif referent.point_xy is not None:
                left, top = (coordinate - 3 * line for coordinate in referent.point_xy)
                pen.circle(referent.point_xy, 3 * line, fill=colour, outline="black", width=max(1, line // 2))
            words = textwrap.shorten(answer.expression, MAX_LABEL_CHARACTERS, placeholder="...")
            label = words if referent.score is None else f"{words} {referent.score:.2f}"
            width, height = (side + 2 * PADDING for side in pen.textbbox((0, 0), label, font, anchor="lt")[2:])
            x, y = max(0, min(left, canvas.width - width)), max(0, top - height)  # on top of it, inside the image
            pen.rectangle((x, y, x + width, y + height), fill=colour)
            pen.text((x + PADDING, y + PADDING), label, "black", font, anchor="lt")
    return canvas


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.65, 1)
    return round(255 * red), round(255 * green), round(255 * blue)
