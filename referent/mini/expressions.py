"""Referring expressions of mini's scenes: those of labelled boxes, and what only scenes and cards are called."""

import random
from collections.abc import Sequence

from referent.core.boxes import Box
from referent.data.expressions import Expression, extremes, unambiguous, with_articles
from referent.mini.cards import RANKS

ORDINALS_LEARNT = ("second",)


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
    found = unambiguous(rng, names, boxes_xyxy, side, _rank_or_card, ORDINALS_LEARNT)
    if len(names) >= 2 and rng.random() < 0.3:
        anything = extremes(rng, "object", range(len(names)), boxes_xyxy, side, ORDINALS_LEARNT)
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
