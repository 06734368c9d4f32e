import random

from hypothesis import given
from hypothesis import strategies as st

from referent.data.expressions import describe_objects
from tests.support.objects import NAMES, labelled_objects


def described(scene: list, classes: tuple[str, ...] = ("dog", "cat", "king", "tree"), absent: float = 0.3) -> set:
    names, boxes = [name for name, _ in scene], [box for _, box in scene]
    found = [
        expression
        for seed in range(60)
        for expression in describe_objects(random.Random(seed), names, boxes, 300, classes, 8, absent)
    ]
    return {(e.kind, e.text.removeprefix("find ").removeprefix("the "), e.targets) for e in found}


def test_objects_in_a_row_are_counted_from_both_ends_up_to_the_fifth() -> None:
    row = [("dog", (x, 100, x + 20, 120)) for x in range(0, 280, 40)]
    ordinals = {(text, target) for kind, text, target in described(row) if kind == "ordinal"}
    words = ("first", "second", "third", "fourth", "fifth")
    assert ordinals == {(f"{word} dog from the left", (i,)) for i, word in enumerate(words)} | {
        (f"{word} dog from the right", (6 - i,)) for i, word in enumerate(words)
    }


def test_classes_are_called_as_they_are_and_nothing_is_said_of_objects_in_general() -> None:
    texts = {text for _, text, _ in described([("king", (10, 10, 50, 50)), ("dog", (200, 10, 240, 50))])}
    assert "king" in texts
    assert not any("card" in text or "object" in text for text in texts)


def test_absent_names_are_those_of_classes_that_are_not_shown() -> None:
    found = described([("dog", (10, 10, 50, 50))], absent=1.0)
    assert {text for kind, text, _ in found if kind == "absent"} == {"cat", "king", "tree"}
    assert all((not targets) == (kind == "absent") for kind, _, targets in found)


@given(labelled_objects, st.integers(0, 5))
def test_labels_are_described_like_scenes_without_ambiguity(scene: list, seed: int) -> None:
    names, boxes = [name for name, _ in scene], [box for _, box in scene]
    for kind, _, targets in describe_objects(random.Random(seed), names, boxes, 280, NAMES, 8, 0.3):
        if kind == "name":
            assert names.count(names[targets[0]]) == 1
        if kind in ("position", "size", "ordinal"):
            assert names.count(names[targets[0]]) > 1
