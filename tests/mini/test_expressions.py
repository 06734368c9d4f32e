import hashlib
import json
import random

from hypothesis import given
from hypothesis import strategies as st

from referent.data.expressions import Expression
from referent.data.plurals import plural
from referent.mini.expressions import make_expressions, training_expressions
from tests.support.objects import NAMES, labelled_objects


def expressions_of(scene: list, seed: int = 0) -> list[Expression]:
    names, boxes = [name for name, _ in scene], [box for _, box in scene]
    return make_expressions(random.Random(seed), names, boxes, 280, NAMES, limit=50, absent=0.3)


@given(labelled_objects, st.integers(0, 5))
def test_a_plain_name_is_used_only_where_it_says_which(scene: list, seed: int) -> None:
    names = [name for name, _ in scene]
    for expression in expressions_of(scene, seed):
        if expression.kind == "name" and expression.text.split()[-1] in NAMES:
            assert names.count(names[expression.targets[0]]) == 1
        if expression.kind == "absent":
            assert not expression.targets
            assert not any(name in expression.text.split() for name in names)


@given(labelled_objects, st.integers(0, 5))
def test_extremes_are_extreme(scene: list, seed: int) -> None:
    for kind, text, targets in expressions_of(scene, seed):
        words = text.split()
        if kind != "position" or "object" in words:
            continue
        (target,) = targets
        alike = [box for name, box in scene if name == scene[target][0]]
        chosen = scene[target][1]
        if "left" in words or "leftmost" in words:
            assert sum(chosen[::2]) == min(sum(box[::2]) for box in alike)
        if "bottom" in words or "lower" in words:
            assert sum(chosen[1::2]) == max(sum(box[1::2]) for box in alike)


def test_a_relation_names_an_anchor_that_occurs_once() -> None:
    scene = [("dog", (10, 100, 50, 140)), ("cat", (200, 100, 240, 140)), ("dog", (100, 5, 140, 45))]
    texts = {(e.text.removeprefix("find ").removeprefix("the "), e.targets)
             for seed in range(50) for e in expressions_of(scene, seed) if e.kind == "relation"}  # fmt: skip
    assert ("cat right of the dog", (1,)) not in texts
    assert all(targets for _, targets in texts)


def test_the_same_seed_says_the_same() -> None:
    scene = [("dog", (10, 100, 50, 140)), ("cat", (200, 100, 240, 140))]
    assert expressions_of(scene, 3) == expressions_of(scene, 3)


def test_what_is_said_of_scenes_stays_what_it_was() -> None:
    """mini's evaluation sets are made anew from their seeds: other words for them would be other sets."""
    names, digest = ["dog", "cat", "cup", "king", "nine", "kite", "tree"], hashlib.sha256()
    for seed in range(300):
        rng = random.Random(seed)
        count = rng.randint(0, 9)
        shown = [rng.choice(names[: rng.randint(1, 7)]) for _ in range(count)]
        boxes = []
        for _ in range(count):
            x, y = rng.randint(0, 200), rng.randint(0, 200)
            boxes.append((x, y, x + rng.randint(15, 90), y + rng.randint(15, 90)))
        said = make_expressions(random.Random(f"pin/{seed}"), shown, boxes, 288, names, 8, 0.3)
        digest.update(json.dumps([(kind, text, *(targets or (None,))) for kind, text, targets in said]).encode())
    assert digest.hexdigest() == "4462c5bc3678bf12f6ddb9d8c41562577c0cf6f338cd0b3c2bfef2f93d6383da"


def trained(scene: list, seed: int, several: float = 0.4, limit: int = 30) -> list[Expression]:
    names, boxes = [name for name, _ in scene], [box for _, box in scene]
    return training_expressions(random.Random(seed), names, boxes, (280, 280), NAMES, limit, several)


def without_articles(expression: Expression) -> str:
    return expression.text.removeprefix("find ").removeprefix("the ")


def test_training_counts_from_four_ends_up_to_the_fifth() -> None:
    diagonal = [("dog", (at, at, at + 20, at + 20)) for at in range(0, 240, 40)]
    ordinals = {
        (without_articles(e), e.targets) for seed in range(80) for e in trained(diagonal, seed) if e.kind == "ordinal"
    }
    for place, ordinal in enumerate(("first", "second", "third", "fourth", "fifth")):
        for first, ends in ((place, ("left", "top")), (5 - place, ("right", "bottom"))):
            for end in ends:
                assert (f"{ordinal} dog from the {end}", (first,)) in ordinals


@given(labelled_objects, st.integers(0, 5))
def test_training_says_what_is_there_and_what_is_not(scene: list, seed: int) -> None:
    names = [name for name, _ in scene]
    for expression in trained(scene, seed):
        words = without_articles(expression).split()
        spoken = {name for name in NAMES if name in words or plural(name) in words}
        if expression.kind == "absent":
            assert not expression.targets
            assert "from" in words or not spoken & set(names)
        elif not expression.several:
            (target,) = expression.targets
            if expression.kind != "relation" and spoken:
                assert names[target] in spoken
            if expression.kind == "name" and spoken:
                assert names.count(names[target]) == 1


@given(labelled_objects, st.integers(0, 5))
def test_training_for_one_box_has_nothing_of_several(scene: list, seed: int) -> None:
    assert not any(e.several or len(e.targets) > 1 for e in trained(scene, seed, several=0))


def test_the_middle_and_the_corners() -> None:
    scene = [("cup", (10, 10, 40, 40)), ("cup", (120, 200, 150, 230)), ("cup", (230, 100, 260, 130))]
    said = {
        (without_articles(e), e.targets) for seed in range(80) for e in trained(scene, seed) if e.kind == "position"
    }
    assert {("middle cup", (1,)), ("cup in the top left corner", (0,))} <= said
    assert not any("bottom right" in text or "bottom left" in text for text, _ in said)
