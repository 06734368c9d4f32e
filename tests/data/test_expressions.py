import random

from hypothesis import given
from hypothesis import strategies as st

from referent.data.expressions import Expression, make_expressions

NAMES = ["dog", "cat", "cup", "king"]
box = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(20, 80), st.integers(20, 80)).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)
scenes = st.lists(st.tuples(st.sampled_from(NAMES), box), min_size=0, max_size=6)


def expressions_of(scene: list, seed: int = 0) -> list[Expression]:
    names, boxes = [name for name, _ in scene], [box for _, box in scene]
    return make_expressions(random.Random(seed), names, boxes, 280, NAMES, limit=50, absent=0.3)


@given(scenes, st.integers(0, 5))
def test_a_plain_name_is_used_only_where_it_says_which(scene: list, seed: int) -> None:
    names = [name for name, _ in scene]
    for expression in expressions_of(scene, seed):
        if expression.kind == "name" and expression.text.split()[-1] in NAMES:
            assert names.count(names[expression.target]) == 1
        if expression.kind == "absent":
            assert expression.target is None
            assert not any(name in expression.text.split() for name in names)


@given(scenes, st.integers(0, 5))
def test_extremes_are_extreme(scene: list, seed: int) -> None:
    for kind, text, target in expressions_of(scene, seed):
        words = text.split()
        if kind != "position" or "object" in words:
            continue
        alike = [box for name, box in scene if name == scene[target][0]]
        chosen = scene[target][1]
        if "left" in words or "leftmost" in words:
            assert sum(chosen[::2]) == min(sum(box[::2]) for box in alike)
        if "bottom" in words or "lower" in words:
            assert sum(chosen[1::2]) == max(sum(box[1::2]) for box in alike)


def test_a_relation_names_an_anchor_that_occurs_once() -> None:
    scene = [("dog", (10, 100, 50, 140)), ("cat", (200, 100, 240, 140)), ("dog", (100, 5, 140, 45))]
    texts = {(e.text.removeprefix("find ").removeprefix("the "), e.target)
             for seed in range(50) for e in expressions_of(scene, seed) if e.kind == "relation"}  # fmt: skip
    assert ("cat right of the dog", 1) not in texts
    assert all(target is not None for _, target in texts)


def test_the_same_seed_says_the_same() -> None:
    scene = [("dog", (10, 100, 50, 140)), ("cat", (200, 100, 240, 140))]
    assert expressions_of(scene, 3) == expressions_of(scene, 3)
