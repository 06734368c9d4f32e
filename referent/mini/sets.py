"""Sets of scenes: what mini trains on, and its seeded evaluation sets, with expressions and true boxes.

Example k of a set depends on the set's seed and k alone.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from referent.core.boxes import Box, Floats
from referent.data.expressions import Expression
from referent.data.records import Record
from referent.mini.artwork import TRAIN_STYLES, UNSEEN_STYLE
from referent.mini.cards import RANKS
from referent.mini.expressions import make_expressions
from referent.mini.scenes import CLASSES, SIDE, Materials, Scene, SceneKind, make_scene, plain_card_photo

EXPRESSIONS_PER_IMAGE = 8


@dataclass(frozen=True)
class Example:
    """An image and expressions about it; boxes xyxy in pixels, NaN for an absent object."""

    image: Image.Image
    expressions: list[Expression]
    boxes_xyxy: Floats  # (M, 4)
    names: list[str]  # of every object in the image


def mixed_scene(materials: Materials, index: int, seed: str, mix: Mapping[SceneKind, float]) -> Example:
    """A scene to train on; `mix` is the share of each kind."""
    rng = random.Random(f"{seed}/{index}")
    scene = make_scene(rng, materials, rng.choices(list(mix), list(mix.values()))[0])
    return _example(rng, scene, SIDE, CLASSES, absent=0.15)


def icon_scene(materials: Materials, index: int, classes: list[str], seed: str, unseen_style: bool) -> Example:
    """A scene of 1 to 9 icons in the styles trained on, or in the one never trained on."""
    rng = random.Random(f"{seed}/{index}")
    scene = make_scene(rng, materials, "icons", (UNSEEN_STYLE,) if unseen_style else TRAIN_STYLES)
    return _example(rng, scene, SIDE, classes, absent=0.15)


def card_photo(materials: Materials, index: int, classes: list[str], seed: str) -> Example:
    """A photograph as it is; an absent name beside half of the expressions."""
    image, photo = materials.photos[index]
    rng = random.Random(f"{seed}/{photo.file.name}")
    return _example(rng, plain_card_photo(image, photo), max(image.size), classes, absent=0.5)


def icon_scenes(
    materials: Materials, classes: list[str], count: int, seed: str, unseen_style: bool
) -> Iterator[Example]:
    """The first `count` icon scenes."""
    for index in range(count):
        yield icon_scene(materials, index, classes, seed, unseen_style)


def card_photos(materials: Materials, classes: list[str], seed: str) -> Iterator[Example]:
    """Every photograph of the split."""
    for index in range(len(materials.photos)):
        yield card_photo(materials, index, classes, seed)


def plain_names_among_ranks(example: Example) -> list[bool]:
    """For each expression: is it a plain name, with several ranks in the photograph?"""
    several = len({name for name in example.names if name in RANKS}) > 1
    return [several and expression.kind == "name" for expression in example.expressions]


def example_records(example: Example, image: str, split: str, set_name: str) -> Iterator[Record]:
    """A record an expression; `image` is the file's path in the image folder."""
    rows = zip(example.expressions, example.boxes_xyxy.tolist(), plain_names_among_ranks(example), strict=True)
    for number, (expression, box, among_ranks) in enumerate(rows):
        tags = {"set": set_name, "kind": expression.kind}
        if expression.targets:
            tags["class"] = example.names[expression.targets[0]]
        if among_ranks:
            tags["among_ranks"] = "yes"
        found: Box | None = tuple(box) if expression.targets else None
        yield Record(
            id=f"{image}-{number}", image=image, width=example.image.width, height=example.image.height,
            expression=expression.text, box_xyxy=found, split=split, tags=tags,
        )  # fmt: skip


def _example(rng: random.Random, scene: Scene, side: float, classes: list[str], absent: float) -> Example:
    expressions = make_expressions(rng, scene.names, scene.boxes, side, classes, EXPRESSIONS_PER_IMAGE, absent)
    absent_box = (np.nan,) * 4
    boxes = [scene.boxes[e.targets[0]] if e.targets else absent_box for e in expressions]
    return Example(scene.image, expressions, np.array(boxes, np.float64).reshape(-1, 4), scene.names)
