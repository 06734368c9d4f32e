"""Mini's evaluation sets: seeded scenes and held-out card photographs, with expressions and true boxes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from referent.boxes import Floats
from referent.data.artwork import TRAIN_STYLES, UNSEEN_STYLE
from referent.data.cards import RANKS
from referent.data.expressions import Expression, make_expressions
from referent.data.scenes import SIDE, Materials, Scene, make_scene, plain_card_photo

EXPRESSIONS_PER_IMAGE = 8


@dataclass(frozen=True)
class Item:
    """An image and expressions about it; boxes xyxy in pixels, NaN for an absent object."""

    image: Image.Image
    expressions: list[Expression]
    boxes_xyxy: Floats  # (M, 4)
    names: list[str]  # of every object in the image


def icon_scenes(materials: Materials, classes: list[str], count: int, seed: str, unseen_style: bool) -> Iterator[Item]:
    """Scenes of 1 to 9 icons in the styles trained on, or in the one never trained on."""
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        scene = make_scene(rng, materials, "icons", (UNSEEN_STYLE,) if unseen_style else TRAIN_STYLES)
        yield _item(rng, scene, SIDE, classes, absent=0.15)


def card_photos(materials: Materials, classes: list[str], seed: str) -> Iterator[Item]:
    """Every photograph of the split as it is; an absent name beside half of the expressions."""
    for image, photo in materials.photos:
        rng = random.Random(f"{seed}/{photo.file.name}")
        yield _item(rng, plain_card_photo(image, photo), max(image.size), classes, absent=0.5)


def plain_names_among_ranks(item: Item) -> list[bool]:
    """For each expression: is it a plain name, with several ranks in the photograph?"""
    several = len({name for name in item.names if name in RANKS}) > 1
    return [several and expression.kind == "name" for expression in item.expressions]


def _item(rng: random.Random, scene: Scene, side: float, classes: list[str], absent: float) -> Item:
    expressions = make_expressions(rng, scene.names, scene.boxes, side, classes, EXPRESSIONS_PER_IMAGE, absent)
    absent_box = (np.nan,) * 4
    boxes = [absent_box if e.target is None else scene.boxes[e.target] for e in expressions]
    return Item(scene.image, expressions, np.array(boxes, np.float64).reshape(-1, 4), scene.names)
