"""Referring expressions generated from labelled boxes: only unambiguous ones, and names of absent objects.

`make_expressions` is for mini's scenes, `describe_objects` for photographs with detection labels.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from referent.mini.cards import RANKS

Box = tuple[float, float, float, float]


class Expression(NamedTuple):
    """Text, the kind of cue it rests on, and the index of its object (None: absent from the scene)."""

    kind: str  # name, position, size, ordinal, relation, absent
    text: str
    target: int | None


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
SCENE_ORDINALS = ("second",)  # mini's

Say = Callable[[random.Random, str], str]  # a class name -> what to call it


def make_expressions(
    rng: random.Random,
    names: Sequence[str],
    boxes_xyxy: Sequence[Box],
    side: float,
    vocabulary: Sequence[str],
    limit: int,
    absent: float = 0.15,
) -> list[Expression]:
    """Up to `limit` expressions of a scene whose longer side is `side` pixels, in random order; each is followed by
    an absent name with probability `absent`."""
    found = _names_and_extremes(rng, names, boxes_xyxy, side, _rank_or_card, SCENE_ORDINALS)
    found += _relations(rng, names, boxes_xyxy, side, _rank_or_card)
    if len(names) >= 2 and rng.random() < 0.3:
        anything = _extremes(rng, "object", range(len(names)), boxes_xyxy, side, SCENE_ORDINALS)
        found += rng.sample(anything, min(1, len(anything)))
    if len(names) == 1 and names[0] in RANKS:
        found.append(Expression("name", "card", 0))
    rng.shuffle(found)
    chosen: list[Expression] = []
    candidates: list[Expression | None] = [*found] or [None]
    for expression in candidates:
        if expression:
            chosen.append(expression)
        if not expression or rng.random() < absent:
            among_ranks = any(name in RANKS for name in names) and rng.random() < 0.7
            name = rng.choice(RANKS if among_ranks else vocabulary)
            if name not in names:
                chosen.append(Expression("absent", _rank_or_card(rng, name), None))
    return [Expression(kind, rng.choice(ARTICLES) + text, target) for kind, text, target in chosen[:limit]]


def describe_objects(
    rng: random.Random,
    names: Sequence[str],
    boxes_xyxy: Sequence[Box],
    side: float,
    classes: Sequence[str],
    limit: int,
    absent: float = 0.15,
) -> list[Expression]:
    """As `make_expressions`, for the labelled objects of a photograph: nothing is said of objects in general, since a
    photograph shows more than its labels."""
    found = _names_and_extremes(rng, names, boxes_xyxy, side, _as_it_is, ORDINALS)
    found += _relations(rng, names, boxes_xyxy, side, _as_it_is)
    found = rng.sample(found, min(limit, len(found)))
    others = [name for name in classes if name not in names]
    for _ in range(sum(rng.random() < absent for _ in range(max(1, len(found))))):
        if others:
            found.append(Expression("absent", others.pop(rng.randrange(len(others))), None))
    return [Expression(kind, rng.choice(ARTICLES) + text, target) for kind, text, target in found[-limit:]]


def _rank_or_card(rng: random.Random, name: str) -> str:
    return f"{name} card" if name in RANKS and rng.random() < 0.25 else name


def _as_it_is(rng: random.Random, name: str) -> str:
    return name


def _names_and_extremes(
    rng: random.Random, names: Sequence[str], boxes: Sequence[Box], side: float, say: Say, ordinals: Sequence[str]
) -> list[Expression]:
    found = []
    for name, count in Counter(names).items():
        alike = [i for i, other in enumerate(names) if other == name]
        if count == 1:
            found.append(Expression("name", say(rng, name), alike[0]))
        else:
            found += _extremes(rng, say(rng, name), alike, boxes, side, ordinals)
    return found


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _extremes(
    rng: random.Random,
    name: str,
    alike: Sequence[int],
    boxes: Sequence[Box],
    side: float,
    ordinals: Sequence[str],
) -> list[Expression]:
    """Position, size and order among two or more objects of one name, where the difference is plain to see."""
    found = []
    for (axis, sign), templates in POSITIONS.values():
        first, second, *_ = sorted(alike, key=lambda i: -sign * _centre(boxes[i])[axis])
        if abs(_centre(boxes[first])[axis] - _centre(boxes[second])[axis]) > 0.07 * side:
            found.append(Expression("position", rng.choice(templates).format(name), first))
    by_area = sorted(alike, key=lambda i: _area(boxes[i]))
    if _area(boxes[by_area[-1]]) > 1.35 * _area(boxes[by_area[-2]]):
        found.append(Expression("size", f"{rng.choice(('largest', 'biggest'))} {name}", by_area[-1]))
    if _area(boxes[by_area[1]]) > 1.35 * _area(boxes[by_area[0]]):
        found.append(Expression("size", f"smallest {name}", by_area[0]))
    if len(alike) >= 3:
        row = sorted(alike, key=lambda i: _centre(boxes[i])[0])
        gaps = [_centre(boxes[b])[0] - _centre(boxes[a])[0] for a, b in pairwise(row)]
        if min(gaps) > 0.05 * side:
            for ordinal in ordinals[: len(row)]:
                place = ORDINALS.index(ordinal)
                found.append(Expression("ordinal", f"{ordinal} {name} from the left", row[place]))
                found.append(Expression("ordinal", f"{ordinal} {name} from the right", row[-1 - place]))
    return found


def _relations(
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
                return sign * (_centre(boxes[i])[axis] - _centre(boxes[anchor])[axis])

            for target in range(len(names)):
                across = abs(_centre(boxes[target])[1 - axis] - _centre(boxes[anchor])[1 - axis])
                alike = [i for i, name in enumerate(names) if name == names[target]]
                far_enough = target != anchor and along(target) > max(0.08 * side, across)
                if far_enough and sum(along(i) > 0.02 * side for i in alike) == 1:
                    text = f"{say(rng, names[target])} {RELATIONS[direction]} the {say(rng, names[anchor])}"
                    found.append(Expression("relation", text, target))
    return rng.sample(found, min(RELATIONS_PER_SCENE, len(found)))
