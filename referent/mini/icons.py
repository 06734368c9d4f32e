"""The icons of synthetic scenes: their materials, how they look, and where they find room."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from referent.core.boxes import Box
from referent.mini.artwork import INK_STYLES, MAX_SIDE, Icon, load_artwork
from referent.mini.augmentation import COLOURED, UNSEEN, Augmentation, Recolour, ink, outlined, recolouring, shadowed
from referent.mini.canvas import Scene, jitter
from referent.mini.cards import Photo, read_photos, read_split

_OPAQUE = [255 * (alpha > 40) for alpha in range(256)]


@dataclass(frozen=True)
class Materials:
    """What scenes are made of."""

    artwork: Mapping[str, Mapping[str, Icon]]
    backgrounds: Sequence[Image.Image]
    photos: Sequence[tuple[Image.Image, Photo]]
    _halves: dict[tuple[str, str], Image.Image] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, artwork: Path, backgrounds: Path | None, cards: Path, split_file: Path, split: str) -> "Materials":
        """Card photographs of one split; background photographs serve training only (None: drawn ones alone)."""
        photos = read_photos(cards)
        images = []
        for file in sorted(backgrounds.glob("*.jpg")) if backgrounds else []:
            with Image.open(file) as image:
                images.append(image.convert("RGB"))
        chosen = [photos[name] for name in read_split(split_file)[split]]
        return cls(load_artwork(artwork), images, [(photo.open(), photo) for photo in chosen])

    def icon(self, style: str, name: str) -> Image.Image:
        """RGBA, as it is in the artwork."""
        return Image.fromarray(self.artwork[style][name])

    def half(self, style: str, name: str) -> Image.Image:
        """At half its size: scaling from there takes a third of the time. Not to be changed."""
        if (style, name) not in self._halves:
            self._halves[style, name] = self.icon(style, name).reduce(2)
        return self._halves[style, name]


@dataclass(frozen=True)
class Look:
    """How the icons of a scene are drawn. `recolour` is what all of them have in common, if `alike`."""

    styles: Sequence[str]
    augmentation: Augmentation | None = None
    alike: bool = False
    recolour: Recolour | None = None
    shadow: bool = False


def random_look(rng: random.Random, styles: Sequence[str], augmentation: Augmentation) -> Look:
    """One for all icons of a scene to train on."""
    alike = rng.random() < augmentation.alike
    recoloured = alike and rng.random() < augmentation.icon
    return Look(
        (rng.choice(styles),) if rng.random() < augmentation.one_style else styles, augmentation, alike,
        recolouring(rng, augmentation.icon_ways) if recoloured else None, rng.random() < augmentation.shadow,
    )  # fmt: skip


def known_names(materials: Materials, look: Look) -> list[str]:
    """Names that this look can draw."""
    known = list(materials.artwork[look.styles[0]])
    return known if look.styles[0] not in INK_STYLES else [name for name in known if name not in COLOURED]


def draw_icon(
    rng: random.Random, materials: Materials, name: str, look: Look, size: float, behind: int = 0
) -> Image.Image:
    """An icon whose longer side is `size` pixels, sometimes flipped, rotated or recoloured; `behind` is the grey level
    of what it will stand on."""
    style = rng.choice([s for s in look.styles if name in materials.artwork[s] and _shows(s, name)])
    icon = materials.half(style, name) if look.augmentation and size < 0.5 * MAX_SIDE else materials.icon(style, name)
    if rng.random() < 0.3:
        icon = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = size / max(icon.size)
    width, height = max(4, round(icon.width * scale * rng.uniform(0.88, 1.12))), max(4, round(icon.height * scale))
    gap = 1.1 if look.augmentation else 2.0  # evaluation scenes stay as they are
    icon = icon.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=gap)
    if rng.random() < 0.6:
        icon = icon.rotate(rng.uniform(-22, 22), Image.Resampling.BILINEAR, expand=True)
        icon = icon.crop(icon.getchannel("A").point(_OPAQUE).getbbox())
    if look.augmentation:
        if style in INK_STYLES:
            icon = ink(rng, icon, look.augmentation.see_through, behind)
        return _restyled(rng, icon, name, look, look.augmentation)
    if rng.random() < 0.5:
        icon = _with_alpha(jitter(rng, icon.convert("RGB"), 0.25), icon)
    return icon


def _shows(style: str, name: str) -> bool:
    return style not in INK_STYLES or name not in COLOURED


def _restyled(rng: random.Random, icon: Image.Image, name: str, look: Look, augmentation: Augmentation) -> Image.Image:
    recolour = look.recolour
    if not look.alike and rng.random() < augmentation.icon:
        recolour = recolouring(rng, augmentation.icon_ways)
    if recolour and name not in COLOURED:
        icon = _with_alpha(recolour(icon.convert("RGB")), icon)
    elif rng.random() < 0.5:
        icon = _with_alpha(jitter(rng, icon.convert("RGB"), 0.25), icon)
    return outlined(rng, icon) if rng.random() < augmentation.outline else icon


def _with_alpha(image: Image.Image, icon: Image.Image) -> Image.Image:
    image.putalpha(icon.getchannel("A"))
    return image


def paste(rng: random.Random, scene: Scene, icon: Image.Image, name: str, look: Look, overlap: float = 0.2) -> None:
    """Try some places that hide at most `overlap` of any object; leave the icon out if none is found."""
    free_width, free_height = scene.image.width - icon.width, scene.image.height - icon.height
    if free_width < 0 or free_height < 0:
        return
    for _ in range(12):
        corner = (rng.randint(0, free_width), rng.randint(0, free_height))
        if put(rng, scene, icon, name, corner, look, overlap):
            return


def put(
    rng: random.Random,
    scene: Scene,
    icon: Image.Image,
    name: str,
    corner: tuple[int, int],
    look: Look,
    overlap: float = 0.2,
) -> bool:
    """Whether it fits there, and is there now."""
    box = (*corner, corner[0] + icon.width, corner[1] + icon.height)
    if not all(_hidden(box, other) <= overlap for other in scene.boxes):
        return False
    if look.shadow:
        shadowed(rng, scene.image, icon, corner)
    scene.image.paste(icon, corner, icon)
    scene.add(name, box, np.asarray(icon)[..., 3] >= (UNSEEN if look.augmentation else 61))
    return True


def _hidden(a: Box, b: Box) -> float:
    """Intersection over the smaller of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0, width) * max(0, height) / smaller
