"""Sets of scenes: what mini trains on, and its seeded evaluation sets, with expressions and true boxes.

Example k of a set depends only on the set's seed and k.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from referent.core.boxes import Box, Floats
from referent.data.expressions import Expression, with_articles
from referent.data.records import Record
from referent.mini.artwork import EVALUATED_STYLES, UNSEEN_STYLE
from referent.mini.canvas import SIDE, Scene
from referent.mini.cards import RANKS
from referent.mini.expressions import make_expressions, several_expressions, training_expressions
from referent.mini.icons import Materials
from referent.mini.scenes import CLASSES, SceneKind, make_scene, plain_card_photo, training_scene

EXPRESSIONS_PER_IMAGE = 8
NONE_PER_IMAGE = 2
SEVERAL_KINDS: tuple[SceneKind, ...] = ("icons", "alike", "alike", "rows")


@dataclass(frozen=True)
class Example:
    """An image and expressions about it; boxes xyxy in pixels. `boxes_xyxy` has the first referent's of each
    expression, NaN for an absent one; `objects_xyxy` has that of every object in the image."""

    image: Image.Image
    expressions: list[Expression]
    boxes_xyxy: Floats  # (M, 4)
    names: list[str]  # of every object in the image
    objects_xyxy: list[Box] = field(default_factory=list)


def mixed_scene(
    materials: Materials, index: int, seed: str, mix: Mapping[SceneKind, float], several: float = 0.0
) -> Example:
    """A scene to train on; `mix` is the share of each kind, `several` that of expressions in the plural."""
    rng = random.Random(f"{seed}/{index}")
    scene = training_scene(rng, materials, mix)
    expressions = training_expressions(
        rng, scene.names, scene.boxes, scene.image.size, CLASSES, EXPRESSIONS_PER_IMAGE, several
    )
    return _example(scene, expressions)


def icon_scene(
    materials: Materials, index: int, classes: list[str], seed: str, styles: Sequence[str] = EVALUATED_STYLES
) -> Example:
    """A scene of 1 to 9 icons."""
    rng = random.Random(f"{seed}/{index}")
    scene = make_scene(rng, materials, "icons", styles)
    return _plain(rng, scene, SIDE, classes, absent=0.15)


def several_scene(materials: Materials, index: int, classes: list[str], seed: str) -> Example:
    """A scene with expressions that mean several of its icons, or none."""
    rng = random.Random(f"{seed}/several/{index}")
    scene = make_scene(rng, materials, rng.choice(SEVERAL_KINDS))
    return _several(rng, scene, classes)


def card_photo(materials: Materials, index: int, classes: list[str], seed: str) -> Example:
    """A photograph as it is; an absent name beside half of the expressions."""
    image, photo = materials.photos[index]
    rng = random.Random(f"{seed}/{photo.file.name}")
    return _plain(rng, plain_card_photo(image, photo), max(image.size), classes, absent=0.5)


def several_card_photo(materials: Materials, index: int, classes: list[str], seed: str) -> Example:
    """A photograph as it is, with expressions that mean several of its cards, or none."""
    image, photo = materials.photos[index]
    rng = random.Random(f"{seed}/several/{photo.file.name}")
    return _several(rng, plain_card_photo(image, photo), classes)


def icon_scenes(
    materials: Materials, classes: list[str], count: int, seed: str, unseen_style: bool
) -> Iterator[Example]:
    """The first `count` icon scenes, in the styles trained on or in the test's, which is never trained on."""
    for index in range(count):
        yield icon_scene(materials, index, classes, seed, (UNSEEN_STYLE,) if unseen_style else EVALUATED_STYLES)


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
        called = {example.names[target] for target in expression.targets}
        if len(called) == 1:
            tags["class"] = called.pop()
        if among_ranks:
            tags["among_ranks"] = "yes"
        found: Box | None = None
        those: tuple[Box, ...] | None = None
        if expression.several:
            those = tuple(example.objects_xyxy[target] for target in expression.targets) or None
        elif expression.targets:
            found = tuple(box)
        yield Record(
            id=f"{image}-{number}", image=image, width=example.image.width, height=example.image.height,
            expression=expression.text, box_xyxy=found, boxes_xyxy=those,
            split=split, tags=tags,
        )  # fmt: skip


def _plain(rng: random.Random, scene: Scene, side: float, classes: list[str], absent: float) -> Example:
    return _example(
        scene, make_expressions(rng, scene.names, scene.boxes, side, classes, EXPRESSIONS_PER_IMAGE, absent)
    )


def _several(rng: random.Random, scene: Scene, classes: list[str]) -> Example:
    """At most `EXPRESSIONS_PER_IMAGE`, of which at most `NONE_PER_IMAGE` mean none."""
    others = [name for name in classes if name not in scene.names]
    found = several_expressions(rng, scene.names, scene.boxes, scene.image.size, others)
    rng.shuffle(found)
    some = [expression for expression in found if expression.targets]
    none = [expression for expression in found if not expression.targets]
    chosen = some[: EXPRESSIONS_PER_IMAGE - len(none[:NONE_PER_IMAGE])] + none[:NONE_PER_IMAGE]
    return _example(scene, with_articles(rng, chosen))


def _example(scene: Scene, expressions: list[Expression]) -> Example:
    absent_box = (np.nan,) * 4
    boxes = [scene.boxes[e.targets[0]] if e.targets else absent_box for e in expressions]
    return Example(scene.image, expressions, np.array(boxes, np.float64).reshape(-1, 4), scene.names, scene.boxes)
