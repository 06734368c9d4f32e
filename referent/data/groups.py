"""Generates expressions that mean several objects or none, from labelled boxes."""

import random
from collections.abc import Sequence

from referent.core.boxes import Box
from referent.data.expressions import POSITIONS, Expression, Say, area, as_it_is, centre
from referent.data.plurals import plural

NUMBERS = ("two", "three", "four", "five", "six")  # NUMBERS[i] is i + 2
ALL = ("{}", "all {}", "all the {}", "all of the {}", "the {}")
SIDES = {  # direction -> how the place of a group is described
    "left": ("on the left", "on the left side", "in the left half"),
    "right": ("on the right", "on the right side", "in the right half"),
    "top": ("at the top", "in the upper half", "in the top half"),
    "bottom": ("at the bottom", "in the lower half", "in the bottom half"),
}
SUPERLATIVES = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "lowest"}
MIDDLE = 0.05  # of the longer side: an object closer to the middle of the image is on neither side
GAP = 0.06  # of the longer side: the least distance between the objects of a group and the others
GROWTH = 1.35  # the least ratio of areas between the objects of a group and the others
MOST = 64
ALONE = 0.25  # share of single objects that are named in the plural nevertheless


def groups(
    rng: random.Random,
    names: Sequence[str],
    boxes_xyxy: Sequence[Box],
    size: tuple[int, int],
    say: Say = as_it_is,
    others: Sequence[str] = (),
) -> list[Expression]:
    """Expressions for all objects of a name, those on one side, the two to four outermost or largest, their number, and
    two kinds at once. `size` is the image's (width, height), `boxes_xyxy` are in its pixels. `others` are names that
    the image does not show; some expressions use them and mean no object."""
    found = []
    several = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    for name, alike in several.items():
        found += of_name(rng, say(rng, name), alike, boxes_xyxy, size)
    found += _pairs(rng, several, say)
    for name in rng.sample(list(others), min(3, len(others))):
        if called := plural(say(rng, name)):
            found.append(Expression("none", _of_none(rng, say(rng, name), called), ()))
    return found


def of_name(
    rng: random.Random, name: str, alike: Sequence[int], boxes: Sequence[Box], size: tuple[int, int]
) -> list[Expression]:
    """Expressions for all objects called `name`, whose indices are `alike`; empty if the name has no plural."""
    called = plural(name)
    if called is None or len(alike) > MOST:
        return []
    all_of_them, count = tuple(alike), len(alike)
    if count == 1 and rng.random() > ALONE:
        return []
    found = [Expression("plural", rng.choice(ALL).format(called), all_of_them)]
    if rng.random() < 0.4:
        found.append(Expression("plural", f"{rng.choice(('every', 'each'))} {name}", all_of_them))
    if count == 2 and rng.random() < 0.6:
        found.append(Expression("plural", rng.choice(("both {}", "both of the {}")).format(called), all_of_them))
    if 2 <= count < 2 + len(NUMBERS):
        found.append(Expression("count", f"{_the(rng)}{NUMBERS[count - 2]} {called}", all_of_them))
    if count <= len(NUMBERS) and rng.random() < 0.15:  # more than there are; fewer could be any of them
        more = NUMBERS[rng.randint(max(2, count + 1), len(NUMBERS) + 1) - 2]
        found.append(Expression("none", f"the {more} {called}", ()))
    return found + _on_sides(rng, called, alike, boxes, size) + _outermost(rng, called, alike, boxes, max(size))


def _the(rng: random.Random) -> str:
    return rng.choice(("", "the "))


def _of_none(rng: random.Random, name: str, called: str) -> str:
    side = rng.choice([where for sides in SIDES.values() for where in sides])
    return rng.choice(
        (*(template.format(called) for template in ALL), f"every {name}", f"{_the(rng)}{rng.choice(NUMBERS)} {called}",
         f"{_the(rng)}{called} {side}", f"both {called}")
    )  # fmt: skip


def _on_sides(
    rng: random.Random, called: str, alike: Sequence[int], boxes: Sequence[Box], size: tuple[int, int]
) -> list[Expression]:
    """Expressions for each side, if no object is close to the middle; sometimes also for a side that is empty."""
    found = []
    for direction, ((axis, sign), _) in POSITIONS.items():
        beyond = {i: sign * (centre(boxes[i])[axis] - size[axis] / 2) for i in alike}
        if min(map(abs, beyond.values())) > MIDDLE * max(size):
            there = tuple(i for i in alike if beyond[i] > 0)
            if there or rng.random() < 0.2:
                text = f"{rng.choice(('', 'the ', 'all ', 'all the '))}{called} {rng.choice(SIDES[direction])}"
                found.append(Expression("group" if there else "none", text, there))
    return found


def _outermost(
    rng: random.Random, called: str, alike: Sequence[int], boxes: Sequence[Box], side: float
) -> list[Expression]:
    """ "two leftmost dogs", "the three largest cups": only if there is a clear gap to the next."""
    found = []
    for count in range(2, min(len(alike), 5)):
        number = NUMBERS[count - 2]
        for direction, ((axis, sign), _) in POSITIONS.items():
            inwards = {i: -sign * centre(boxes[i])[axis] for i in alike}
            order = sorted(alike, key=inwards.__getitem__)
            last, following = (centre(boxes[i])[axis] for i in order[count - 1 : count + 1])
            if abs(last - following) > GAP * side:
                most = SUPERLATIVES[direction]
                forms = ("{0} {1} {2}", "{1} {0} {2}", "{0} {2} closest to the {3} edge")
                text = rng.choice(forms).format(number, most, called, direction)
                found.append(Expression("group", _the(rng) + text, tuple(sorted(order[:count]))))
        by_area = sorted(alike, key=lambda i: -area(boxes[i]))
        if area(boxes[by_area[count - 1]]) > GROWTH * area(boxes[by_area[count]]):
            text = f"{number} {rng.choice(('largest', 'biggest'))} {called}"
            found.append(Expression("group", _the(rng) + text, tuple(sorted(by_area[:count]))))
        if area(boxes[by_area[-count - 1]]) > GROWTH * area(boxes[by_area[-count]]):
            found.append(Expression("group", f"{_the(rng)}{number} smallest {called}", tuple(sorted(by_area[-count:]))))
    return found


def _pairs(rng: random.Random, several: dict[str, list[int]], say: Say) -> list[Expression]:
    """ "the cup and the plate", "the cups and the plate": for up to three pairs of names."""
    spoken = {}
    for name, alike in several.items():
        said = say(rng, name)
        called = said if len(alike) == 1 else plural(said)
        if called:
            spoken[called] = alike
    found = []
    for _ in range(min(3, len(spoken) - 1)):
        first, second = rng.sample(list(spoken), 2)
        if not set(spoken[first]) & set(spoken[second]):
            text = rng.choice(("{} and the {}", "{} and {}")).format(first, second)
            found.append(Expression("pair", text, tuple(sorted(spoken[first] + spoken[second]))))
    return found
