"""Draws the same icon in many ways, so that mini learns what things look like and not the style of one icon set.

Each change keeps the shape, which identifies the thing, and varies what styles differ in: colours, lines, texture.
Positions never change, so boxes stay correct.
"""

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter, ImageOps

Recolour = Callable[[Image.Image], Image.Image]  # RGB -> RGB of the same size
RGB = tuple[int, int, int]

COLOURED = ("apple", "green apple")  # names that only colour tells apart: never recoloured, never in ink
UNSEEN = 3  # an alpha
INK_CONTRAST = 80  # grey levels between an icon of ink alone and what lies behind
ICON_WAYS = {
    "hue": 3.0, "permute": 2.0, "duotone": 2.0, "lines": 3.0, "posterise": 1.5, "grey": 1.5, "invert": 0.7, "flat": 1.5,
    "texture": 1.0, "silhouette": 0.2,
}  # fmt: skip
SCENE_WAYS = {
    "hue": 2.0, "permute": 1.5, "duotone": 1.5, "lines": 0.3, "posterise": 1.0, "grey": 2.0, "invert": 1.0, "flat": 0.5
}  # fmt: skip
CARD_WAYS = {"hue": 2.0, "permute": 1.0, "duotone": 1.0, "grey": 3.0, "invert": 0.5}


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of changes to training scenes, and relative weights of the ways to recolour."""

    one_style: float = 0.4  # all icons of a scene in one style, as a picture book has it
    alike: float = 0.5  # all icons of a scene recoloured in one way
    icon: float = 0.5  # an icon, or all of a scene, is recoloured
    scene: float = 0.25  # the finished picture is recoloured
    outline: float = 0.15
    shadow: float = 0.15
    see_through: float = 0.25  # an ink icon without the white that its lines enclose
    grain: float = 0.1
    blur: float = 0.1
    jpeg: float = 0.12
    icon_ways: Mapping[str, float] = field(default_factory=lambda: ICON_WAYS)
    scene_ways: Mapping[str, float] = field(default_factory=lambda: SCENE_WAYS)
    card_ways: Mapping[str, float] = field(default_factory=lambda: CARD_WAYS)  # leave the ranks legible


def recolouring(rng: random.Random, ways: Mapping[str, float]) -> Recolour:
    """One of the ways, with colours of its own."""
    return _WAYS[rng.choices(list(ways), list(ways.values()))[0]](rng)


def ink(rng: random.Random, icon: Image.Image, see_through: float, behind: int) -> Image.Image:
    """A black on white icon in two other colours or, with probability `see_through`, only its ink, in a colour that
    differs from the grey level `behind` it. Enclosed areas then keep an invisible alpha of `UNSEEN`, as parts of it."""
    white = icon.getchannel("R")
    if rng.random() < see_through:
        levels = (0, behind - INK_CONTRAST) if behind > 127 else (behind + INK_CONTRAST, 255)
        colour = _colour(rng, levels)
        inked = Image.new("RGB", icon.size, colour)
        alpha = icon.getchannel("A")
        lines = ImageChops.multiply(ImageChops.invert(white), alpha)
        inked.putalpha(ImageChops.lighter(lines, alpha.point(_UNSEEN)))
        return inked
    dark_ink = rng.random() < 0.8
    dark, light = _colour(rng, (0, 110)), _colour(rng, (150, 255)) if rng.random() < 0.7 else (255, 255, 255)
    inked = _between(white, dark if dark_ink else light, light if dark_ink else dark)
    inked.putalpha(icon.getchannel("A"))
    return inked


def outlined(rng: random.Random, icon: Image.Image) -> Image.Image:
    """With a border of one colour around its shape, like a sticker."""
    width = rng.choice((1, 1, 2, 3))
    wide = Image.new("L", (icon.width + 2 * width, icon.height + 2 * width))
    wide.paste(icon.getchannel("A").point(_MASK), (width, width))
    border = Image.new("RGB", wide.size, rng.choice(((0, 0, 0), (0, 0, 0), (255, 255, 255), _colour(rng, (0, 255)))))
    border.paste(icon.convert("RGB"), (width, width), icon.getchannel("A"))
    shape = Image.new("L", wide.size)
    shape.paste(icon.getchannel("A"), (width, width))
    border.putalpha(ImageChops.lighter(wide.filter(ImageFilter.BoxBlur(width)).point(_NEAR), shape))
    return border


def shadowed(rng: random.Random, scene: Image.Image, icon: Image.Image, corner: tuple[int, int]) -> None:
    """Darken the scene beside where the icon will stand."""
    strength = rng.uniform(0.3, 0.7)
    shade = icon.getchannel("A").point([round(strength * level) for level in range(256)])
    if rng.random() < 0.6:
        shade = shade.filter(ImageFilter.BoxBlur(rng.choice((1, 2, 3))))
    offset = (corner[0] + rng.randint(-4, 6), corner[1] + rng.randint(1, 6))
    scene.paste((0, 0, 0), offset, shade)


def photographed(rng: random.Random, image: Image.Image, augmentation: Augmentation) -> Image.Image:
    """The finished picture with grain, blur and the traces of JPEG, each with its probability."""
    if rng.random() < augmentation.blur:
        if rng.random() < 0.5:
            image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 1.6)))
        else:
            share = rng.uniform(0.4, 0.8)
            small = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BILINEAR)
            image = small.resize(image.size, rng.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR)))
    if rng.random() < augmentation.grain:
        image = _grain(rng)(image)
    if rng.random() < augmentation.jpeg:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(12, 60))
        image = Image.open(buffer).convert("RGB")
    return image


def _hue(rng: random.Random) -> Recolour:
    turn = rng.randint(25, 230)

    def recolour(image: Image.Image) -> Image.Image:
        hues = np.array(image.convert("HSV"))
        hues[..., 0] += np.uint8(turn)  # modulo 256
        return Image.fromarray(hues, "HSV").convert("RGB")

    return recolour


def _permute(rng: random.Random) -> Recolour:
    order = rng.choice(((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)))

    def recolour(image: Image.Image) -> Image.Image:
        bands = image.split()
        return Image.merge("RGB", [bands[index] for index in order])

    return recolour


def _duotone(rng: random.Random) -> Recolour:
    dark, light = _colour(rng, (0, 110)), _colour(rng, (160, 255))
    if rng.random() < 0.15:
        dark, light = light, dark

    def recolour(image: Image.Image) -> Image.Image:
        return _between(image.convert("L"), dark, light)

    return recolour


def _lines(rng: random.Random) -> Recolour:
    """A drawing of its edges; what they enclose is pale, as it was, or of one colour."""
    pen, paper = _colour(rng, (0, 90)), _colour(rng, (170, 255)) if rng.random() < 0.5 else (255, 255, 255)
    gain, keeps = rng.uniform(2, 5), rng.random() < 0.4
    steep = [min(255, round(gain * max(0, level - 10))) for level in range(256)]

    def recolour(image: Image.Image) -> Image.Image:
        edges = image.convert("L").filter(ImageFilter.FIND_EDGES).point(steep)
        drawing = Image.fromarray(_PALE[np.asarray(image)]) if keeps else Image.new("RGB", image.size, paper)
        drawing.paste(pen, (0, 0), edges)
        return drawing

    return recolour


def _posterise(rng: random.Random) -> Recolour:
    bits = rng.choice((1, 2, 2, 3))
    return lambda image: ImageOps.posterize(image, bits)


def _grey(rng: random.Random) -> Recolour:
    return lambda image: image.convert("L").convert("RGB")


def _invert(rng: random.Random) -> Recolour:
    return ImageOps.invert


def _flat(rng: random.Random) -> Recolour:
    """Softened to areas of few colours, with dark edges between them."""
    levels, pen = rng.choice((3, 4, 6)), _colour(rng, (0, 60))
    steps = (np.round(np.arange(256) / 255 * levels) / levels * 255).astype(np.uint8)

    def recolour(image: Image.Image) -> Image.Image:
        flat = Image.fromarray(steps[np.asarray(image.filter(ImageFilter.BoxBlur(1)))])
        edges = flat.convert("L").filter(ImageFilter.FIND_EDGES).point(_STEEP)
        flat.paste(pen, (0, 0), edges)
        return flat

    return recolour


def _texture(rng: random.Random) -> Recolour:
    grain = _grain(rng)
    duotone = _duotone(rng) if rng.random() < 0.5 else None
    return lambda image: grain(duotone(image) if duotone else image)


def _silhouette(rng: random.Random) -> Recolour:
    colour = _colour(rng, (0, 255))
    return lambda image: Image.new("RGB", image.size, colour)


def _grain(rng: random.Random) -> Recolour:
    seed, coarse, strength = rng.randrange(_GRAINS), rng.choice((1, 1, 2, 3)), rng.uniform(0.1, 0.4)
    corner = (rng.randrange(64), rng.randrange(64))

    def recolour(image: Image.Image) -> Image.Image:
        area = (*corner, corner[0] + -(-image.width // coarse), corner[1] + -(-image.height // coarse))
        noise = _noise(seed).crop(area).resize(image.size, Image.Resampling.NEAREST)
        return Image.blend(image, ImageChops.overlay(image, noise), 2 * strength)

    return recolour


_GRAINS = 8


@lru_cache(maxsize=_GRAINS)
def _noise(seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    levels: npt.NDArray[np.floating] = generator.normal(128, 60, (400, 400, 3 if seed % 2 else 1))
    return Image.fromarray(np.broadcast_to(np.clip(levels, 0, 255), (400, 400, 3)).astype(np.uint8))


def _between(grey: Image.Image, black: RGB, white: RGB) -> Image.Image:
    """Black and white become two colours (as ImageOps.colorize does, in a tenth of its time)."""
    ramp = np.linspace(black, white, 256).round().astype(np.uint8)
    return Image.fromarray(ramp[np.asarray(grey)])


def _colour(rng: random.Random, levels: tuple[int, int]) -> RGB:
    """Any hue whose brightness is about within the levels."""
    low, high = levels
    middle = rng.randint(low, high)
    spread = min(middle, 255 - middle, 90)
    red, blue = (middle + rng.randint(-spread, spread) for _ in range(2))
    green = middle + (2 * middle - red - blue) // 4
    return red, max(0, min(255, green)), blue


_MASK = [255 * (level > 60) for level in range(256)]
_UNSEEN = [UNSEEN * (level > 60) for level in range(256)]
_NEAR = [255 * (level > 20) for level in range(256)]
_PALE = (150 + np.arange(256) * 0.41).astype(np.uint8)
_STEEP = [min(255, 6 * max(0, level - 12)) for level in range(256)]
_WAYS: dict[str, Callable[[random.Random], Recolour]] = {
    "hue": _hue, "permute": _permute, "duotone": _duotone, "lines": _lines, "posterise": _posterise, "grey": _grey,
    "invert": _invert, "flat": _flat, "texture": _texture, "silhouette": _silhouette,
}  # fmt: skip
