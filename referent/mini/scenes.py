"""Synthetic scenes: icons on backgrounds, cards cut from photographs, and augmented card photographs.

Every scene is a function of a seed. Lengths are shares of `SIDE`, the longer side of a scene in pixels.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageStat

from referent.core.boxes import Box
from referent.mini.artwork import EVALUATED_STYLES, INK_STYLES, MAX_SIDE, TRAIN_STYLES, Icon, load_artwork, vocabulary
from referent.mini.augmentation import (
    COLOURED,
    UNSEEN,
    Augmentation,
    Recolour,
    ink,
    outlined,
    photographed,
    recolouring,
    shadowed,
)
from referent.mini.cards import RANKS, Photo, read_photos, read_split

SIDE = 288
CLASSES = [*vocabulary(), *RANKS]  # the names of everything that scenes show
SceneKind = Literal["icons", "crowd", "cut", "photo", "alike", "rows"]
SCENE_KINDS: tuple[str, ...] = get_args(SceneKind)


AUGMENTATION = Augmentation()
_OPAQUE = [255 * (alpha > 40) for alpha in range(256)]


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
class _Look:
    """How the icons of a scene are drawn. `recolour` is what all of them have in common, if `alike`."""

    styles: Sequence[str]
    augmentation: Augmentation | None = None
    alike: bool = False
    recolour: Recolour | None = None
    shadow: bool = False


def training_scene(
    rng: random.Random, materials: Materials, mix: Mapping[SceneKind, float], augmentation: Augmentation = AUGMENTATION
) -> Scene:
    """A scene in the styles that are trained on, of a kind by its share in `mix`."""
    return make_scene(rng, materials, rng.choices(list(mix), list(mix.values()))[0], TRAIN_STYLES, augmentation)


def make_scene(
    rng: random.Random,
    materials: Materials,
    kind: SceneKind,
    styles: Sequence[str] = EVALUATED_STYLES,
    augmentation: Augmentation | None = None,
) -> Scene:
    """`icons` 1-9 objects, `crowd` 12-22, `cut` cards cut from photographs among icons, `photo` an augmented card
    photograph, `alike` 4-11 with several of one name, `rows` some in rows or columns. A style that stands in `styles`
    several times is drawn as much more often. Evaluation sets have no augmentation."""
    look = _look(rng, styles, augmentation) if augmentation else _Look(styles)
    scene = _card_photo(rng, materials, look) if kind == "photo" else _icon_scene(rng, materials, kind, look)
    if augmentation:
        if rng.random() < augmentation.scene and not any(name in COLOURED for name in scene.names):
            ways = augmentation.card_ways if kind in ("photo", "cut") else augmentation.scene_ways
            scene.image = recolouring(rng, ways)(scene.image)
        scene.image = photographed(rng, scene.image, augmentation)
    elif kind != "photo" and rng.random() < 0.15:
        scene.image = scene.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.5)))
    return scene


def repeated_scene(
    rng: random.Random, materials: Materials, count: int, styles: Sequence[str] = EVALUATED_STYLES
) -> tuple[Scene, str]:
    """Icons of one name, at most `count` as there is room, and up to six of others; and that name."""
    look = _Look(styles)
    width, height = _canvas_size(rng)
    scene = _blank(_background(rng, materials, width, height))
    name, *others = rng.sample(_known(materials, look), 7)
    largest = min(0.4, 0.75 / math.sqrt(count))
    for shown in [name] * count + others[: rng.randint(0, 6)]:
        icon = _icon(rng, materials, shown, look, SIDE * largest * rng.uniform(0.7, 1))
        _paste(rng, scene, icon, shown, look, overlap=0.1)
    return scene, name


def _look(rng: random.Random, styles: Sequence[str], augmentation: Augmentation) -> _Look:
    alike = rng.random() < augmentation.alike
    recoloured = alike and rng.random() < augmentation.icon
    return _Look(
        (rng.choice(styles),) if rng.random() < augmentation.one_style else styles, augmentation, alike,
        recolouring(rng, augmentation.icon_ways) if recoloured else None, rng.random() < augmentation.shadow,
    )  # fmt: skip


def _icon_scene(rng: random.Random, materials: Materials, kind: SceneKind, look: _Look) -> Scene:
    width, height = _canvas_size(rng)
    scene = _blank(_background(rng, materials, width, height))
    if kind == "cut":
        for _ in range(rng.randint(1, 4)):
            _paste_card(rng, scene, materials, look)
    if kind == "rows":
        _paste_rows(rng, scene, materials, look)
    counts = {
        "icons": rng.randint(1, 9),
        "crowd": rng.randint(12, 22),
        "cut": rng.randint(0, 4),
    }  # seeds draw all three
    count = counts[kind] if kind in counts else rng.randint(*{"alike": (4, 11), "rows": (0, 3)}[kind])
    largest = 0.52 if count <= 4 and kind != "rows" else 0.38 if count <= 10 else 0.31
    known = _known(materials, look)
    names = _names(rng, known, count)
    if kind == "alike":
        names[: rng.randint(3, 6)] = [rng.choice(known)] * rng.randint(3, 6)
    behind = _grey_level(scene.image) if look.augmentation else 0
    for name in names:
        size = SIDE * math.exp(rng.uniform(math.log(0.12), math.log(largest)))
        icon = _icon(rng, materials, name, look, min(size, 0.8 * min(width, height)), behind)
        _paste(rng, scene, icon, name, look)
    return scene


def _known(materials: Materials, look: _Look) -> list[str]:
    """Names that this look can draw."""
    known = list(materials.artwork[look.styles[0]])
    return known if look.styles[0] not in INK_STYLES else [name for name in known if name not in COLOURED]


def _grey_level(image: Image.Image) -> int:
    mean: float = ImageStat.Stat(image.reduce(8).convert("L")).mean[0]
    return round(mean)


def plain_card_photo(image: Image.Image, photo: Photo) -> Scene:
    """The photograph as it is, for evaluation."""
    scene = _blank(image)
    for name, box in photo.objects:
        scene.add(name, _clip(box, image.size))
    return scene


def _blank(image: Image.Image) -> Scene:
    return Scene(image, np.zeros((image.height, image.width), np.uint8))


def _canvas_size(rng: random.Random) -> tuple[int, int]:
    short = round(SIDE * rng.uniform(0.56, 0.95))
    return rng.choice([(SIDE, SIDE), (SIDE, SIDE), (short, SIDE), (SIDE, short)])


def _names(rng: random.Random, vocabulary: Sequence[str], count: int) -> list[str]:
    """Some names several times, so that position, size and order are needed to tell their objects apart."""
    names: list[str] = []
    while len(names) < count:
        names += [rng.choice(vocabulary)] * (rng.choice([1, 1, 1, 2, 2, 3]) if count > 1 else 1)
    return names[:count]


def _background(rng: random.Random, materials: Materials, width: int, height: int) -> Image.Image:
    choice = rng.random()
    if choice < 0.55 and materials.backgrounds:
        photo = rng.choice(materials.backgrounds)
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


def _jitter(rng: random.Random, image: Image.Image, strength: float) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.5:
            image = enhance(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _icon(
    rng: random.Random, materials: Materials, name: str, look: _Look, size: float, behind: int = 0
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
        icon = _with_alpha(_jitter(rng, icon.convert("RGB"), 0.25), icon)
    return icon


def _shows(style: str, name: str) -> bool:
    return style not in INK_STYLES or name not in COLOURED


def _restyled(rng: random.Random, icon: Image.Image, name: str, look: _Look, augmentation: Augmentation) -> Image.Image:
    recolour = look.recolour
    if not look.alike and rng.random() < augmentation.icon:
        recolour = recolouring(rng, augmentation.icon_ways)
    if recolour and name not in COLOURED:
        icon = _with_alpha(recolour(icon.convert("RGB")), icon)
    elif rng.random() < 0.5:
        icon = _with_alpha(_jitter(rng, icon.convert("RGB"), 0.25), icon)
    return outlined(rng, icon) if rng.random() < augmentation.outline else icon


def _with_alpha(image: Image.Image, icon: Image.Image) -> Image.Image:
    image.putalpha(icon.getchannel("A"))
    return image


def _paste(rng: random.Random, scene: Scene, icon: Image.Image, name: str, look: _Look, overlap: float = 0.2) -> None:
    """Try some places that hide at most `overlap` of any object; leave the icon out if none is found."""
    free_width, free_height = scene.image.width - icon.width, scene.image.height - icon.height
    if free_width < 0 or free_height < 0:
        return
    for _ in range(12):
        corner = (rng.randint(0, free_width), rng.randint(0, free_height))
        if _put(rng, scene, icon, name, corner, look, overlap):
            return


def _put(
    rng: random.Random,
    scene: Scene,
    icon: Image.Image,
    name: str,
    corner: tuple[int, int],
    look: _Look,
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


def _paste_rows(rng: random.Random, scene: Scene, materials: Materials, look: _Look) -> None:
    """One to three rows, or columns, of three to six icons, most of one name."""
    column = rng.random() < 0.4
    along, across = scene.image.size[::-1] if column else scene.image.size
    known, behind = _known(materials, look), _grey_level(scene.image) if look.augmentation else 0
    lines, name = rng.choice((1, 1, 2, 2, 3)), rng.choice(known)
    for line in range(lines):
        name = name if rng.random() < 0.4 else rng.choice(known)
        names = [name if rng.random() < 0.85 else rng.choice(known) for _ in range(rng.randint(3, 6))]
        step, band = along / len(names), across / lines
        size = min(step, band) * rng.uniform(0.55, 0.95)
        level = band * (line + 0.5) if lines > 1 else rng.uniform(size / 2, across - size / 2)
        for place, shown in enumerate(names):
            icon = _icon(rng, materials, shown, look, max(0.09 * SIDE, size * rng.uniform(0.8, 1)), behind)
            centre = [step * (place + 0.5 + rng.uniform(-0.12, 0.12)), level + rng.uniform(-0.1, 0.1) * band]
            if column:
                centre.reverse()
            left, top = round(centre[0] - icon.width / 2), round(centre[1] - icon.height / 2)
            left, top = min(left, scene.image.width - icon.width), min(top, scene.image.height - icon.height)
            if min(left, top) >= 0:
                _put(rng, scene, icon, shown, (left, top), look)


def _hidden(a: Box, b: Box) -> float:
    """Intersection over the smaller of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0, width) * max(0, height) / smaller


def _clip(box: Box, size: tuple[int, int]) -> Box:
    return max(0, box[0]), max(0, box[1]), min(size[0], box[2]), min(size[1], box[3])


def _paste_card(rng: random.Random, scene: Scene, materials: Materials, look: _Look) -> None:
    image, photo = rng.choice(materials.photos)
    name, box = rng.choice(photo.objects)
    x1, y1, x2, y2 = (round(v) for v in _clip(box, image.size))
    card = image.crop((x1, y1, x2, y2))
    card = card.rotate(90 * rng.randint(0, 3), expand=True)
    scale = SIDE * rng.uniform(0.2, 0.55) / max(card.size)
    size = (max(8, round(card.width * scale)), max(8, round(card.height * scale)))
    card = _jitter(rng, card.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0), 0.3)
    _paste(rng, scene, card.convert("RGBA"), name, look)


def _card_photo(rng: random.Random, materials: Materials, look: _Look) -> Scene:
    """A photograph cropped around one of its cards, turned, shrunk into a larger canvas, recoloured, with icons."""
    image, photo = rng.choice(materials.photos)
    objects = [(name, _clip(box, image.size)) for name, box in photo.objects]
    if rng.random() < 0.75:
        image, objects = _crop(rng, image, objects)
    turns = rng.choice([0, 0, 1, 2, 3])
    for _ in range(turns):
        width = image.width
        objects = [(name, (y1, width - x2, y2, width - x1)) for name, (x1, y1, x2, y2) in objects]
        image = image.rotate(90, expand=True)
    scale = SIDE / max(image.size)
    stretch = rng.uniform(0.9, 1.1) if rng.random() < 0.5 else 1.0
    size = (max(8, min(SIDE, round(image.width * scale * stretch))), max(8, round(image.height * scale)))
    if rng.random() < 0.3:
        canvas_size = size
        share = rng.uniform(0.6, 1)
        size = (max(8, round(size[0] * share)), max(8, round(size[1] * share)))
        canvas = _background(rng, materials, *canvas_size)
        corner = (rng.randint(0, canvas_size[0] - size[0]), rng.randint(0, canvas_size[1] - size[1]))
    else:
        canvas, corner = Image.new("RGB", size), (0, 0)
    scale_x, scale_y = size[0] / image.width, size[1] / image.height
    resized = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    canvas.paste(_jitter(rng, resized, 0.4), corner)
    scene = _blank(canvas)
    for name, (x1, y1, x2, y2) in objects:
        x1, x2 = x1 * scale_x + corner[0], x2 * scale_x + corner[0]
        y1, y2 = y1 * scale_y + corner[1], y2 * scale_y + corner[1]
        scene.add(name, (x1, y1, x2, y2))
    if rng.random() < 0.3:
        for name in rng.sample(_known(materials, look), rng.randint(1, 2)):
            _paste(rng, scene, _icon(rng, materials, name, look, SIDE * rng.uniform(0.12, 0.31)), name, look, 0.05)
    return scene


def _crop(
    rng: random.Random, image: Image.Image, objects: list[tuple[str, Box]]
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """A random crop that holds one chosen card whole; others stay where more than half of them is left."""
    x1, y1, x2, y2 = rng.choice(objects)[1]
    left, top = int(rng.uniform(0, x1)), int(rng.uniform(0, y1))
    right, bottom = math.ceil(rng.uniform(x2, image.width)), math.ceil(rng.uniform(y2, image.height))
    size = (right - left, bottom - top)
    kept = []
    for name, box in objects:
        moved = _clip((box[0] - left, box[1] - top, box[2] - left, box[3] - top), size)
        whole = (box[2] - box[0]) * (box[3] - box[1])
        inside = max(0, moved[2] - moved[0]) * max(0, moved[3] - moved[1])
        if inside > 0.55 * whole:
            kept.append((name, moved))
    return image.crop((left, top, right, bottom)), kept
