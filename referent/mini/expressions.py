"""Referring expressions of mini's scenes: those of labelled boxes, and others that only scenes and cards have."""

import random
from collections.abc import Sequence
from itertools import pairwise

from referent.core.boxes import Box
from referent.data.expressions import (
    ORDINALS,
    POSITIONS,
    Expression,
    centre,
    extremes,
    relations,
    unambiguous,
    with_articles,
)
from referent.data.groups import groups, of_name
from referent.mini.cards import RANKS

ORDINALS_EVALUATED = ("second",)  # in `scenes` and `cards`, whose words stay as they are
ABSENT, ABSENT_RANK = 0.15, 0.3  # shares of training expressions
RELATED = 0.6  # share of training scenes in which relations are looked for, which takes time
KIND_WEIGHTS = {"name": 1.2, "position": 1.5, "ordinal": 4.0, "size": 0.8, "relation": 0.8}
ORDINAL_SHARES = (0.4, 1.0, 0.6, 0.35, 0.2)  # people say "second" most: the first is the leftmost
VERTICAL_SHARE = 0.5  # rows are read along more often than columns
PAIR_SHARE = 0.3  # of two, the second is the last, which other words say shorter
SEVERAL_WEIGHTS = {"plural": 1.2, "count": 0.7, "group": 1.6, "pair": 0.5, "none": 0.6}
PLACES = {
    "left": ("{} furthest to the left", "{} on the far left", "{} closest to the left edge", "leftmost {}"),
    "right": ("{} furthest to the right", "{} on the far right", "{} closest to the right edge", "rightmost {}"),
    "top": ("topmost {}", "highest {}", "{} closest to the top", "uppermost {}"),
    "bottom": ("bottommost {}", "lowest {}", "{} closest to the bottom", "{} furthest down"),
}
ORDINAL_FORMS = ("{ordinal} {name} from the {end}",) * 4 + (
    "{ordinal} {name} counting from the {end}", "{name} that is {ordinal} from the {end}"
)  # fmt: skip


def training_expressions(
    rng: random.Random,
    names: Sequence[str],
    boxes_xyxy: Sequence[Box],
    size: tuple[int, int],
    vocabulary: Sequence[str],
    limit: int,
    several: float = 0.35,
) -> list[Expression]:
    """Up to `limit` expressions of a scene of `size` pixels, in random order. A share of `several` are in the plural:
    they mean several objects or none."""
    others = [name for name in vocabulary if name not in names]
    absent_share = ABSENT_RANK if any(name in RANKS for name in names) else ABSENT
    one = _by_kind(_of_one(rng, names, boxes_xyxy, size))
    many = _by_kind(several_expressions(rng, names, boxes_xyxy, size, others)) if several else {}
    chosen: list[Expression] = []
    for _ in range(limit):
        found, weights = (many, SEVERAL_WEIGHTS) if many and rng.random() < several else (one, KIND_WEIGHTS)
        if found is one and (not one or rng.random() < absent_share):
            chosen += _absent(rng, names, others)
        elif found:
            kind = rng.choices(list(found), [weights[kind] for kind in found])[0]
            chosen.append(found[kind].pop())
            if not found[kind]:
                del found[kind]
    return with_articles(rng, list(dict.fromkeys(chosen)))


def several_expressions(
    rng: random.Random, names: Sequence[str], boxes_xyxy: Sequence[Box], size: tuple[int, int], others: Sequence[str]
) -> list[Expression]:
    """Expressions that mean several objects of a scene, and ones that mean none, with names that it does not show."""
    cards = [i for i, name in enumerate(names) if name in RANKS]
    ranks = [name for name in others if name in RANKS]
    if cards and rng.random() < 0.7:
        others = ranks
    found = groups(rng, names, boxes_xyxy, size, _rank_or_card, others)
    if cards and "credit card" not in names:
        found += of_name(rng, "card", cards, boxes_xyxy, size)
    if len(names) >= 2 and rng.random() < 0.2:
        anything = of_name(rng, "object", range(len(names)), boxes_xyxy, size)
        found += rng.sample(anything, min(1, len(anything)))
    return found


def _by_kind(expressions: Sequence[Expression]) -> dict[str, list[Expression]]:
    """Kind -> its expressions, in the order in which they came."""
    found: dict[str, list[Expression]] = {}
    for expression in expressions:
        found.setdefault(expression.kind, []).append(expression)
    return found


def _of_one(rng: random.Random, names: Sequence[str], boxes: Sequence[Box], size: tuple[int, int]) -> list[Expression]:
    side = max(size)
    found = relations(rng, names, boxes, side, _rank_or_card) if rng.random() < RELATED else []
    alike = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    cards = [i for i, name in enumerate(names) if name in RANKS]
    if "credit card" not in names:
        alike["card"] = cards
    if rng.random() < 0.3:
        alike["object"] = list(range(len(names)))
    for name, those in alike.items():
        said = _rank_or_card(rng, name)
        if len(those) > 1:
            found += extremes(rng, said, those, boxes, side, ordinals=())
            found += _places(rng, said, those, boxes, side) + _ordinals(rng, said, those, boxes, side)
        elif those and name != "object":
            found.append(Expression("name", said, (those[0],)))
    rng.shuffle(found)
    return found


def _places(rng: random.Random, name: str, alike: Sequence[int], boxes: Sequence[Box], side: float) -> list[Expression]:
    """Other words for what is outermost, what is in the middle of a row, and what is outermost in a corner."""
    found = []
    for direction, ((axis, sign), _) in POSITIONS.items():
        first, second, *_ = sorted(alike, key=lambda i: -sign * centre(boxes[i])[axis])
        if abs(centre(boxes[first])[axis] - centre(boxes[second])[axis]) > 0.07 * side:
            found.append(Expression("position", rng.choice(PLACES[direction]).format(name), (first,)))
    middle = [sum(centre(boxes[i])[axis] for i in alike) / len(alike) for axis in (0, 1)]
    for vertical, down in (("top", -1), ("bottom", 1)):
        for horizontal, across in (("left", -1), ("right", 1)):
            outward = {
                i: (across * (centre(boxes[i])[0] - middle[0]), down * (centre(boxes[i])[1] - middle[1])) for i in alike
            }
            first, second, *_ = sorted(alike, key=lambda i: -sum(outward[i]))
            far = sum(outward[first]) - sum(outward[second]) > 0.15 * side
            if far and min(outward[first]) > 0.05 * side:
                form = rng.choice(("{} {} {name}", "{name} in the {} {} corner", "{name} at the {} {}"))
                found.append(Expression("position", form.format(vertical, horizontal, name=name), (first,)))
    for axis in (0, 1):
        row = _row(alike, boxes, side, axis)
        if len(row) >= 3 and len(row) % 2:
            form = rng.choice(("middle {}", "{} in the middle"))
            if axis == 0 or not _row(alike, boxes, side, 0):  # where both are rows, people read from left to right
                found.append(Expression("position", form.format(name), (row[len(row) // 2],)))
    return found


def _ordinals(
    rng: random.Random, name: str, alike: Sequence[int], boxes: Sequence[Box], side: float
) -> list[Expression]:
    """First to fifth from each end, each as often as people say it."""
    found = []
    pair = PAIR_SHARE if len(alike) == 2 else 1
    for axis, ends in ((0, ("left", "right")), (1, ("top", "bottom"))):
        row = _row(alike, boxes, side, axis)
        for end, order in zip(ends, (row, row[::-1]), strict=True):
            for ordinal, share, target in zip(ORDINALS, ORDINAL_SHARES, order, strict=False):
                if rng.random() > share * pair * (VERTICAL_SHARE if axis else 1):
                    continue
                text = rng.choice(ORDINAL_FORMS).format(ordinal=ordinal, name=name, end=end)
                found.append(Expression("ordinal", text, (target,)))
    return found


def _row(alike: Sequence[int], boxes: Sequence[Box], side: float, axis: int) -> list[int]:
    """In order along the axis; empty where two are hardly apart."""
    row = sorted(alike, key=lambda i: centre(boxes[i])[axis])
    apart = [centre(boxes[b])[axis] - centre(boxes[a])[axis] for a, b in pairwise(row)]
    return row if min(apart) > 0.05 * side else []


def _absent(rng: random.Random, names: Sequence[str], others: Sequence[str]) -> list[Expression]:
    """A name that is not shown, alone or with a place; or one more of a name than there are."""
    if names and rng.random() < 0.15:
        name = rng.choice(names)
        count = sum(other == name for other in names)
        if count < len(ORDINALS):
            end = rng.choice(list(POSITIONS))
            return [Expression("absent", f"{ORDINALS[rng.randrange(count, 5)]} {name} from the {end}", ())]
    among_ranks = any(name in RANKS for name in names) and rng.random() < 0.8
    choice = [name for name in others if name in RANKS] if among_ranks else others
    if not choice:
        return []
    name = _rank_or_card(rng, rng.choice(choice))
    if rng.random() < 0.2:
        direction = rng.choice(list(POSITIONS))
        name = rng.choice(PLACES[direction] + POSITIONS[direction][1]).format(name)
    return [Expression("absent", name, ())]


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
    found = unambiguous(rng, names, boxes_xyxy, side, _rank_or_card, ORDINALS_EVALUATED)
    if len(names) >= 2 and rng.random() < 0.3:
        anything = extremes(rng, "object", range(len(names)), boxes_xyxy, side, ORDINALS_EVALUATED)
        found += rng.sample(anything, min(1, len(anything)))
    if len(names) == 1 and names[0] in RANKS:
        found.append(Expression("name", "card", (0,)))
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
                chosen.append(Expression("absent", _rank_or_card(rng, name), ()))
    return with_articles(rng, chosen[:limit])


def _rank_or_card(rng: random.Random, name: str) -> str:
    return f"{name} card" if name in RANKS and rng.random() < 0.25 else name
