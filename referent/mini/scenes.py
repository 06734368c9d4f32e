"""Synthetic scenes: icons on backgrounds, cards cut from photographs, and augmented card photographs.

Every scene is a function of a seed.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from PIL import Image, ImageFilter

from referent.core.boxes import Box
from referent.mini.artwork import EVALUATED_STYLES, TRAIN_STYLES, vocabulary
from referent.mini.augmentation import COLOURED, Augmentation, photographed, recolouring
from referent.mini.canvas import SIDE, Scene, background, blank, canvas_size, clip, grey_level, jitter
from referent.mini.cards import RANKS, Photo
from referent.mini.icons import Look, Materials, draw_icon, known_names, paste, put, random_look

CLASSES = [*vocabulary(), *RANKS]  # the names of everything that scenes show
SceneKind = Literal["icons", "crowd", "cut", "photo", "alike", "rows", "many"]
SCENE_KINDS: tuple[str, ...] = get_args(SceneKind)
MOST = 30  # things of one name in a scene of kind `many`
AUGMENTATION = Augmentation()
PLAIN = Look(EVALUATED_STYLES)


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
    photograph, `alike` 4-11 with several of one name, `rows` some in rows or columns, `many` up to 30 of one name. A
    style that stands in `styles` several times is drawn as much more often. Evaluation sets have no augmentation."""
    look = random_look(rng, styles, augmentation) if augmentation else Look(styles)
    if kind == "photo":
        scene = _card_photo(rng, materials, look)
    elif kind == "many":
        scene, _ = repeated_scene(rng, materials, rng.randint(1, MOST), look)
    else:
        scene = _icon_scene(rng, materials, kind, look)
    if augmentation:
        if rng.random() < augmentation.scene and not any(name in COLOURED for name in scene.names):
            ways = augmentation.card_ways if kind in ("photo", "cut") else augmentation.scene_ways
            scene.image = recolouring(rng, ways)(scene.image)
        scene.image = photographed(rng, scene.image, augmentation)
    elif kind != "photo" and rng.random() < 0.15:
        scene.image = scene.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.5)))
    return scene


def repeated_scene(rng: random.Random, materials: Materials, count: int, look: Look = PLAIN) -> tuple[Scene, str]:
    """Icons of one name, at most `count` as there is room, and up to six of others; and that name."""
    width, height = canvas_size(rng)
    scene = blank(background(rng, materials.backgrounds, width, height))
    known = known_names(materials, look)
    name, *others = rng.sample(known, min(7, len(known)))
    largest = min(0.4, 0.75 / math.sqrt(count))
    behind = grey_level(scene.image) if look.augmentation else 0
    for shown in [name] * count + others[: rng.randint(0, 6)]:
        icon = draw_icon(rng, materials, shown, look, SIDE * largest * rng.uniform(0.7, 1), behind)
        paste(rng, scene, icon, shown, look, overlap=0.1)
    return scene, name


def _icon_scene(rng: random.Random, materials: Materials, kind: SceneKind, look: Look) -> Scene:
    width, height = canvas_size(rng)
    scene = blank(background(rng, materials.backgrounds, width, height))
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
    known = known_names(materials, look)
    names = _names(rng, known, count)
    if kind == "alike":
        names[: rng.randint(3, 6)] = [rng.choice(known)] * rng.randint(3, 6)
    behind = grey_level(scene.image) if look.augmentation else 0
    for name in names:
        size = SIDE * math.exp(rng.uniform(math.log(0.12), math.log(largest)))
        icon = draw_icon(rng, materials, name, look, min(size, 0.8 * min(width, height)), behind)
        paste(rng, scene, icon, name, look)
    return scene


def plain_card_photo(image: Image.Image, photo: Photo) -> Scene:
    """The photograph as it is, for evaluation."""
    scene = blank(image)
    for name, box in photo.objects:
        scene.add(name, clip(box, image.size))
    return scene


def _names(rng: random.Random, vocabulary: Sequence[str], count: int) -> list[str]:
    """Some names several times, so that position, size and order are needed to tell their objects apart."""
    names: list[str] = []
    while len(names) < count:
        names += [rng.choice(vocabulary)] * (rng.choice([1, 1, 1, 2, 2, 3]) if count > 1 else 1)
    return names[:count]


def _paste_rows(rng: random.Random, scene: Scene, materials: Materials, look: Look) -> None:
    """One to three rows, or columns, of three to six icons, most of one name."""
    column = rng.random() < 0.4
    along, across = scene.image.size[::-1] if column else scene.image.size
    known, behind = known_names(materials, look), grey_level(scene.image) if look.augmentation else 0
    lines, name = rng.choice((1, 1, 2, 2, 3)), rng.choice(known)
    for line in range(lines):
        name = name if rng.random() < 0.4 else rng.choice(known)
        names = [name if rng.random() < 0.85 else rng.choice(known) for _ in range(rng.randint(3, 6))]
        step, band = along / len(names), across / lines
        size = min(step, band) * rng.uniform(0.55, 0.95)
        level = band * (line + 0.5) if lines > 1 else rng.uniform(size / 2, across - size / 2)
        for place, shown in enumerate(names):
            icon = draw_icon(rng, materials, shown, look, max(0.09 * SIDE, size * rng.uniform(0.8, 1)), behind)
            centre = [step * (place + 0.5 + rng.uniform(-0.12, 0.12)), level + rng.uniform(-0.1, 0.1) * band]
            if column:
                centre.reverse()
            left, top = round(centre[0] - icon.width / 2), round(centre[1] - icon.height / 2)
            left, top = min(left, scene.image.width - icon.width), min(top, scene.image.height - icon.height)
            if min(left, top) >= 0:
                put(rng, scene, icon, shown, (left, top), look)


def _paste_card(rng: random.Random, scene: Scene, materials: Materials, look: Look) -> None:
    image, photo = rng.choice(materials.photos)
    name, box = rng.choice(photo.objects)
    x1, y1, x2, y2 = (round(v) for v in clip(box, image.size))
    card = image.crop((x1, y1, x2, y2))
    card = card.rotate(90 * rng.randint(0, 3), expand=True)
    scale = SIDE * rng.uniform(0.2, 0.55) / max(card.size)
    size = (max(8, round(card.width * scale)), max(8, round(card.height * scale)))
    card = jitter(rng, card.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0), 0.3)
    paste(rng, scene, card.convert("RGBA"), name, look)


def _card_photo(rng: random.Random, materials: Materials, look: Look) -> Scene:
    """A photograph cropped around one of its cards, turned, shrunk into a larger canvas, recoloured, with icons."""
    image, photo = rng.choice(materials.photos)
    objects = [(name, clip(box, image.size)) for name, box in photo.objects]
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
        canvas = background(rng, materials.backgrounds, *canvas_size)
        corner = (rng.randint(0, canvas_size[0] - size[0]), rng.randint(0, canvas_size[1] - size[1]))
    else:
        canvas, corner = Image.new("RGB", size), (0, 0)
    scale_x, scale_y = size[0] / image.width, size[1] / image.height
    resized = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    canvas.paste(jitter(rng, resized, 0.4), corner)
    scene = blank(canvas)
    for name, (x1, y1, x2, y2) in objects:
        x1, x2 = x1 * scale_x + corner[0], x2 * scale_x + corner[0]
        y1, y2 = y1 * scale_y + corner[1], y2 * scale_y + corner[1]
        scene.add(name, (x1, y1, x2, y2))
    if rng.random() < 0.3:
        for name in rng.sample(known_names(materials, look), rng.randint(1, 2)):
            paste(rng, scene, draw_icon(rng, materials, name, look, SIDE * rng.uniform(0.12, 0.31)), name, look, 0.05)
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
        moved = clip((box[0] - left, box[1] - top, box[2] - left, box[3] - top), size)
        whole = (box[2] - box[0]) * (box[3] - box[1])
        inside = max(0, moved[2] - moved[0]) * max(0, moved[3] - moved[1])
        if inside > 0.55 * whole:
            kept.append((name, moved))
    return image.crop((left, top, right, bottom)), kept
