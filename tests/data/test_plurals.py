import pytest

from referent.data.plurals import plural
from referent.mini.scenes import CLASSES


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("cat", "cats"), ("king", "kings"), ("six", "sixes"), ("ace", "aces"), ("fox", "foxes"), ("bus", "buses"),
        ("peach", "peaches"), ("dress", "dresses"), ("butterfly", "butterflies"), ("monkey", "monkeys"),
        ("mouse", "mice"), ("maple leaf", "maple leaves"), ("wine glass", "wine glasses"), ("tooth", "teeth"),
        ("snowman", "snowmen"), ("woman", "women"), ("person", "people"), ("potato", "potatoes"), ("kiwi", "kiwis"),
        ("octopus", "octopuses"), ("human", "humans"), ("Person", "People"), ("TV", "TVs"), ("king card", "king cards"),
    ],
)  # fmt: skip
def test_regular_and_irregular_plurals(name: str, several: str) -> None:
    assert plural(name) == several


@pytest.mark.parametrize(
    "name",
    ["scissors", "grapes", "fish", "sheep", "ping pong", "cars", "jeans", "thumbs up", "sunglasses", "x-ray 2", ""],
)
def test_words_without_a_plural_of_their_own_have_none(name: str) -> None:
    assert plural(name) is None


def test_no_plural_of_a_scene_is_another_name_or_another_plural() -> None:
    plurals = [several for name in CLASSES if (several := plural(name))]
    assert len(set(plurals)) == len(plurals) > 220
    assert not set(plurals) & set(CLASSES)
