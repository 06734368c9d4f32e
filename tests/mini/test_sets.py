import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from referent.mini.expressions import training_expressions
from referent.mini.icons import Materials
from referent.mini.scenes import CLASSES, training_scene
from referent.mini.sets import (
    Example,
    card_photos,
    example_records,
    icon_scenes,
    mixed_scene,
    several_card_photo,
    several_scene,
)


def materials(folder: Path, split: str = "test") -> Materials:
    return Materials.load(folder / "artwork.npz", None, folder / "cards", folder / "split.csv", split)


def the_same(a: Example, b: Example) -> bool:
    same_boxes = np.array_equal(a.boxes_xyxy, b.boxes_xyxy, equal_nan=True)
    return a.expressions == b.expressions and same_boxes and a.image.tobytes() == b.image.tobytes()


def test_an_item_depends_on_seed_and_index_alone(materials_folder: Path) -> None:
    made = materials(materials_folder)
    few, more = (list(icon_scenes(made, CLASSES, count, "test", unseen_style=False)) for count in (2, 4))
    assert all(the_same(a, b) for a, b in zip(few, more[:2], strict=True))
    other = next(icon_scenes(made, CLASSES, 1, "val", unseen_style=False))
    assert not the_same(few[0], other)


def test_a_mix_is_the_stream_that_training_sees(materials_folder: Path) -> None:
    made, mix = materials(materials_folder, "train"), {"photo": 0.3, "icons": 0.3, "alike": 0.2, "rows": 0.2}
    for index in range(6):
        rng = random.Random(f"1/{index}")
        scene = training_scene(rng, made, mix)
        expressions = training_expressions(rng, scene.names, scene.boxes, scene.image.size, CLASSES, 8, several=0)
        assert mixed_scene(made, index, "1", mix).expressions == expressions


def test_records_say_what_kind_of_expression_they_are(materials_folder: Path) -> None:
    (example,) = card_photos(materials(materials_folder), CLASSES, "test")
    records = list(example_records(example, "b.jpg", "test", "cards"))
    assert [record.expression for record in records] == [expression.text for expression in example.expressions]
    for record, expression in zip(records, example.expressions, strict=True):
        assert record.present == bool(expression.targets) == ("class" in record.tags)
        assert record.tags["set"] == "cards"
        assert ("among_ranks" in record.tags) == (expression.kind == "name")  # the photograph shows two ranks


def test_what_is_said_of_several_stays_what_it_was(materials_folder: Path) -> None:
    """As in test_expressions.py, of the sets `several` and `several_cards`."""
    digest, made = hashlib.sha256(), materials(materials_folder)
    examples = [several_scene(made, index, CLASSES, "pin") for index in range(40)]
    for example in examples + [several_card_photo(made, 0, CLASSES, f"pin/{seed}") for seed in range(40)]:
        digest.update(repr([(*expression, example.names) for expression in example.expressions]).encode())
    assert digest.hexdigest() == "f0595333ba643920364cf1edd3fa5d4da1e77c1c77a02d5fa0bb22136f29ad34"


def test_evaluation_scenes_stay_what_they_were(materials_folder: Path) -> None:
    """mini's evaluation sets are made anew from their seeds: other pictures would be other sets."""
    digest = hashlib.sha256()
    for unseen_style in (False, True):
        for example in icon_scenes(materials(materials_folder), CLASSES, 12, "pin", unseen_style):
            digest.update(example.image.tobytes())
            digest.update(repr([(e.text, e.targets) for e in example.expressions]).encode())
    assert digest.hexdigest() == "ca114309a5bb2331c1829bb33c0454b8f2e244a6d7a63e301fdc6bdd68ae937c"


@pytest.mark.parametrize("made", [several_scene, several_card_photo])
def test_records_of_several_have_the_boxes_of_all(
    materials_folder: Path, made: Callable[[Materials, int, list[str], str], Example]
) -> None:
    kinds = set()
    for seed in range(12):
        example = made(materials(materials_folder), 0, CLASSES, str(seed))
        for record, expression in zip(
            example_records(example, "b.jpg", "test", "several"), example.expressions, strict=True
        ):
            kinds.add(expression.kind)
            assert expression.several
            assert record.box_xyxy is None
            assert record.boxes == tuple(example.objects_xyxy[target] for target in expression.targets)
            assert record.present == (expression.kind != "none")
    assert kinds >= {"plural", "count", "none"}


def test_cards_are_asked_for_by_rank_and_all_at_once(materials_folder: Path) -> None:
    said = {
        (expression.text.removeprefix("find ").removeprefix("all ").removeprefix("the "), expression.targets)
        for seed in range(60)
        for expression in several_card_photo(materials(materials_folder), 0, CLASSES, str(seed)).expressions
    }
    assert {("cards", (0, 1)), ("both cards", (0, 1)), ("kings", (0,)), ("queens", ())} <= said
