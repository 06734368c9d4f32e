"""Finds a font that has all letters of a text: the one in this package, or else one of the system's."""

import math
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

BUNDLED = str(Path(__file__).parent / "fonts" / "Inter-Medium.otf")
# Chinese, Japanese, Korean; Hebrew, Arabic and more; Indian scripts
SYSTEM = ("NotoSansCJK-Regular.ttc", "msgothic.ttc", "PingFang.ttc", "DejaVuSans.ttf", "arial.ttf", "Nirmala.ttf")
NO_LETTER = "\uffff"


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has all letters of the text, else the bundled one, which draws a box for missing letters."""
    letters = {letter for letter in printable(text) if not letter.isspace()}
    if not all(_has(BUNDLED, letter) for letter in letters):
        for file in _system_fonts():
            if all(_has(file, letter) for letter in letters):
                return _loaded(file, size)
    return _loaded(BUNDLED, size)


def width_of(text: str, size: int) -> int:
    """Width of the text in whole pixels."""
    left, _, right, _ = font_for(text, size).getbbox(printable(text), anchor="lm")
    return math.ceil(right - left)


def printable(text: str) -> str:
    """The text without invisible characters and marks of writing direction."""
    return "".join(letter for letter in text if letter.isprintable())


@lru_cache(maxsize=10_000)
def _has(file: str, letter: str) -> bool:
    font = _loaded(file, 16)
    return bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))


@cache
def _system_fonts() -> list[str]:
    found = []
    for name in SYSTEM:
        with suppress(OSError):
            ImageFont.truetype(name)
            found.append(name)
    return found


@lru_cache(maxsize=64)
def _loaded(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
