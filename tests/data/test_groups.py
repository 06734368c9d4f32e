import random

from hypothesis import given
from hypothesis import strategies as st

from referent.data.expressions import SEVERAL, Expression
from referent.data.groups import NUMBERS, groups
from referent.data.plurals import plural
from tests.support.objects import NAMES, labelled_objects

SIZE = (280, 300)
BOTH = [("dog", (10, 10, 40, 40)), ("dog", (200, 20, 240, 60))]
ROW = [("dog", (x, 100, x + side, 100 + side)) for x, side in ((10, 20), (60, 22), (150, 40), (220, 44))]


def said(scene: list, others: tuple[str, ...] = (), seeds: int = 60) -> set[tuple[str, tuple[int, ...]]]:
    """Texts without what people begin them with, and what they mean."""
    found = (e for seed in range(seeds) for e in described(scene, seed, others))
    return {(e.text.removeprefix("the ").removeprefix("all ").removeprefix("the "), e.targets) for e in found}


def described(scene: list, seed: int, others: tuple[str, ...] = ()) -> list[Expression]:
    names, boxes = [name for name, _ in scene], [box for _, box in scene]
    return groups(random.Random(seed), names, boxes, SIZE, others=others)


def test_two_of_a_name_are_both_and_two_and_every_one_of_them() -> None:
    both = (0, 1)
    expected = {"dogs", "of the dogs", "both dogs", "both of the dogs", "two dogs", "every dog", "each dog"}
    assert {text for text, targets in said(BOTH) if targets == both} >= expected


def test_the_outermost_and_the_largest_are_those_with_a_gap_to_the_rest() -> None:
    texts = said(ROW)
    assert {("two leftmost dogs", (0, 1)), ("rightmost two dogs", (2, 3)), ("two largest dogs", (2, 3))} <= texts
    assert ("two smallest dogs", (0, 1)) in texts
    assert not any("three" in text and targets for text, targets in texts if "largest" in text or "smallest" in text)
    assert not any("topmost" in text or "lowest" in text for text, _ in texts)


def test_those_on_a_side_are_told_only_where_none_is_near_the_middle() -> None:
    assert ("dogs on the left", (0, 1)) in said(ROW)
    in_the_middle = [*ROW, ("dog", (130, 10, 150, 30))]
    assert not any("on the left" in text or "left half" in text for text, _ in said(in_the_middle))


def test_a_count_that_is_wrong_means_none_and_is_never_below_the_true_one() -> None:
    wrong = {text for text, targets in said(BOTH, seeds=300) if not targets and text.split()[0] in NUMBERS}
    assert wrong == {"three dogs", "four dogs", "five dogs", "six dogs"}


def test_names_that_are_not_shown_mean_none() -> None:
    none = [e for seed in range(60) for e in described(BOTH, seed, ("horse", "fish"))]
    assert {e.text for e in none if "horse" in e.text} >= {"all the horses", "every horse", "both horses"}
    assert all(e.kind == "none" and not e.targets for e in none if "horse" in e.text)
    assert not any("fish" in e.text for e in none)


def test_two_names_are_the_objects_of_both() -> None:
    scene = [*BOTH, ("cat", (100, 200, 130, 230))]
    pairs = {(e.text, e.targets) for seed in range(60) for e in described(scene, seed) if e.kind == "pair"}
    assert pairs == {
        (f"{a}{b}", (0, 1, 2))
        for a, b in (("dogs and the ", "cat"), ("dogs and ", "cat"), ("cat and the ", "dogs"), ("cat and ", "dogs"))
    }


@given(labelled_objects, st.integers(0, 5))
def test_what_is_said_of_several_is_of_the_names_that_are_said(scene: list, seed: int) -> None:
    names = [name for name, _ in scene]
    for kind, text, targets in described(scene, seed, tuple(set(NAMES) - set(names))):
        assert kind in SEVERAL
        assert (kind == "none") == (not targets)
        words = text.split()
        spoken = {name for name in NAMES if name in words or plural(name) in words}
        assert {names[target] for target in targets} == (spoken if targets else set())
        if kind in ("plural", "count", "pair"):
            assert list(targets) == [i for i, name in enumerate(names) if name in spoken]
