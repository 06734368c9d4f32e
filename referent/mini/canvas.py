"""The canvas of a synthetic scene: its size, what is behind the objects, and where they are.

Lengths are shares of `SIDE`, the longer side of a scene in pixels.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageStat

from referent.core.boxes import Box

SIDE = 288


@dataclass
class Scene:
    """An image, its named objects (boxes xyxy in its pixels), and which object owns each pixel."""

    image: Image.Image
    owner: npt.NDArray[np.uint8]  # (H, W): 0 background, k the k-th object counted from 1
    names: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def add(self, name: str, box: Box, visible: npt.NDArray[np.bool_] | None = None) -> None:
        """Register an object that has been drawn at `box`; `visible` is its mask within the box."""
        self.names.append(name)
        self.boxes.append(box)
        left, top, right, bottom = (round(v) for v in box)
        region = self.owner[top:bottom, left:right]
        region[... if visible is None else visible] = len(self.names)


def blank(image: Image.Image) -> Scene:
    """Without objects."""
    return Scene(image, np.zeros((image.height, image.width), np.uint8))


def canvas_size(rng: random.Random) -> tuple[int, int]:
    """Width and height in pixels."""
    short = round(SIDE * rng.uniform(0.56, 0.95))
    return rng.choice([(SIDE, SIDE), (SIDE, SIDE), (short, SIDE), (SIDE, short)])


def background(rng: random.Random, photos: Sequence[Image.Image], width: int, height: int) -> Image.Image:
    """A part of one of the photographs, or a gradient, a grain or a colour."""
    choice = rng.random()
    if choice < 0.55 and photos:
        photo = rng.choice(photos)
        share = rng.uniform(0.35, 1)
        crop_width, crop_height = photo.width * share, photo.height * share
        left, top = rng.uniform(0, photo.width - crop_width), rng.uniform(0, photo.height - crop_height)
        crop = photo.resize(
            (width, height), Image.Resampling.BILINEAR, box=(left, top, left + crop_width, top + crop_height)
        )
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
    noise = np.random.default_rng(rng.getrandbits(32))
    if choice < 0.7:  # gradient between a few colours
        grid = rng.choice([2, 2, 3, 4])
        cells: npt.NDArray[np.generic] = noise.integers(0, 256, (grid, grid, 3))
    elif choice < 0.85:  # coloured or grey grain
        grid = rng.choice([6, 16, 40, 96])
        cells = noise.integers(0, 256, 3) + noise.normal(0, rng.uniform(5, 45), (grid, grid, rng.choice([1, 3])))
    else:  # one colour
        cells = np.broadcast_to(noise.integers(0, 256, 3) if rng.random() < 0.6 else 255, (2, 2, 3))
    small = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def grey_level(image: Image.Image) -> int:
    """Its mean, 0 to 255."""
    mean: float = ImageStat.Stat(image.reduce(8).convert("L")).mean[0]
    return round(mean)


def jitter(rng: random.Random, image: Image.Image, strength: float) -> Image.Image:
    """Of other brightness, contrast and colour, by at most this share."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.5:
            image = enhance(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def clip(box: Box, size: tuple[int, int]) -> Box:
    """What of it (xyxy, pixels) is in an image of this width and height."""
    return max(0, box[0]), max(0, box[1]), min(size[0], box[2]), min(size[1], box[3])
