"""Generates referring expressions from labelled boxes: only unambiguous ones, and names of absent objects."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from referent.core.boxes import Box

SEVERAL = ("plural", "count", "group", "pair", "none")  # all of a name, their number, some of them, two names, none


class Expression(NamedTuple):
    """The text, the kind of cue it uses, and the indices of the objects that it means: empty if they are absent."""

    kind: str  # name, position, size, ordinal, relation, absent; SEVERAL's
    text: str
    targets: tuple[int, ...]

    @property
    def several(self) -> bool:
        """Whether it is of a kind that can mean more than one object."""
        return self.kind in SEVERAL


POSITIONS = {  # direction -> (axis, sign), templates
    "left": ((0, -1), ("left {}", "{} on the left", "leftmost {}")),
    "right": ((0, 1), ("right {}", "{} on the right", "rightmost {}")),
    "top": ((1, -1), ("top {}", "{} at the top", "upper {}")),
    "bottom": ((1, 1), ("bottom {}", "{} at the bottom", "lower {}")),
}
RELATIONS = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
ARTICLES = ("", "the ", "find the ")
RELATIONS_PER_SCENE = 2
ORDINALS = ("first", "second", "third", "fourth", "fifth")

Say = Callable[[random.Random, str], str]  # a class name -> what to call it


def describe_objects(
    rng: random.Random,
    names: Sequence[str],
    boxes_xyxy: Sequence[Box],
    side: float,
    classes: Sequence[str],
    limit: int,
    absent: float = 0.15,
) -> list[Expression]:
    """Up to `limit` expressions for a photograph's labelled objects. Boxes and `side`, its longer side, are in pixels.

    For each of them, the name of an absent class is added with probability `absent`. No expression is about objects in
    general, since a photograph shows more than its labels.
    """
    found = unambiguous(rng, names, boxes_xyxy, side)
    found = rng.sample(found, min(limit, len(found)))
    others = [name for name in classes if name not in names]
    for _ in range(sum(rng.random() < absent for _ in range(max(1, len(found))))):
        if others:
            found.append(Expression("absent", others.pop(rng.randrange(len(others))), ()))
    return with_articles(rng, found[-limit:])


def with_articles(rng: random.Random, expressions: Sequence[Expression]) -> list[Expression]:
    """The expressions with a random beginning, such as "the"; those of several objects keep their own articles."""
    begun = []
    for expression in expressions:
        article = rng.choice(ARTICLES)
        start = article.removesuffix("the ") if expression.several else article
        begun.append(expression._replace(text=start + expression.text))
    return begun


def as_it_is(rng: random.Random, name: str) -> str:
    return name


def unambiguous(
    rng: random.Random,
    names: Sequence[str],
    boxes_xyxy: Sequence[Box],
    side: float,
    say: Say = as_it_is,
    ordinals: Sequence[str] = ORDINALS,
) -> list[Expression]:
    """All names, positions, sizes and places in a row that fit only one object, and some relations between two."""
    found = []
    for name, count in Counter(names).items():
        alike = [i for i, other in enumerate(names) if other == name]
        if count == 1:
            found.append(Expression("name", say(rng, name), (alike[0],)))
        else:
            found += extremes(rng, say(rng, name), alike, boxes_xyxy, side, ordinals)
    return found + relations(rng, names, boxes_xyxy, side, say)


def extremes(
    rng: random.Random,
    name: str,
    alike: Sequence[int],
    boxes: Sequence[Box],
    side: float,
    ordinals: Sequence[str],
) -> list[Expression]:
    """Position, size and order among two or more objects of one name, if the difference is easy to see."""
    found = []
    for (axis, sign), templates in POSITIONS.values():
        first, second, *_ = sorted(alike, key=lambda i: -sign * centre(boxes[i])[axis])
        if abs(centre(boxes[first])[axis] - centre(boxes[second])[axis]) > 0.07 * side:
            found.append(Expression("position", rng.choice(templates).format(name), (first,)))
    by_area = sorted(alike, key=lambda i: area(boxes[i]))
    if area(boxes[by_area[-1]]) > 1.35 * area(boxes[by_area[-2]]):
        found.append(Expression("size", f"{rng.choice(('largest', 'biggest'))} {name}", (by_area[-1],)))
    if area(boxes[by_area[1]]) > 1.35 * area(boxes[by_area[0]]):
        found.append(Expression("size", f"smallest {name}", (by_area[0],)))
    if len(alike) >= 3:
        row = sorted(alike, key=lambda i: centre(boxes[i])[0])
        gaps = [centre(boxes[b])[0] - centre(boxes[a])[0] for a, b in pairwise(row)]
        if min(gaps) > 0.05 * side:
            for ordinal in ordinals[: len(row)]:
                place = ORDINALS.index(ordinal)
                found.append(Expression("ordinal", f"{ordinal} {name} from the left", (row[place],)))
                found.append(Expression("ordinal", f"{ordinal} {name} from the right", (row[-1 - place],)))
    return found


def relations(
    rng: random.Random, names: Sequence[str], boxes: Sequence[Box], side: float, say: Say
) -> list[Expression]:
    """ "the cup left of the plate": the anchor's name occurs once, and one object of the target's name fits."""
    count = Counter(names)
    found = []
    for anchor in range(len(names)):
        if count[names[anchor]] > 1:
            continue
        for direction, ((axis, sign), _) in POSITIONS.items():

            def along(i: int, axis: int = axis, sign: int = sign, anchor: int = anchor) -> float:
                return sign * (centre(boxes[i])[axis] - centre(boxes[anchor])[axis])

            for target in range(len(names)):
                across = abs(centre(boxes[target])[1 - axis] - centre(boxes[anchor])[1 - axis])
                alike = [i for i, name in enumerate(names) if name == names[target]]
                far_enough = target != anchor and along(target) > max(0.08 * side, across)
                if far_enough and sum(along(i) > 0.02 * side for i in alike) == 1:
                    text = f"{say(rng, names[target])} {RELATIONS[direction]} the {say(rng, names[anchor])}"
                    found.append(Expression("relation", text, (target,)))
    return rng.sample(found, min(RELATIONS_PER_SCENE, len(found)))


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
