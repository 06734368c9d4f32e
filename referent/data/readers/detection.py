"""Generates referring expressions from the detection labels of an image, for the readers of such formats."""

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from referent.core.boxes import Box
from referent.core.prompts import ExpressionError, clean_expression
from referent.data.expressions import describe_objects
from referent.data.image_files import upright_size
from referent.data.records import LOST_LETTER, Record, Rejected, RowError, check_box, check_image_path

NAMELESS = "label without a name that can be read"
EXPRESSIONS_PER_IMAGE = 8
STRETCH = 0.02  # how much the image's aspect ratio may differ from that of its labels


class Thing(NamedTuple):
    """A labelled object; its name or box is None if the label lacks it or it can't be read. A crowd is a region of many
    objects: expressions can't tell apart objects of its name."""

    name: str | None
    box_xyxy: Box | None
    crowd: bool = False


class Labelled(NamedTuple):
    """An image as it was labelled, boxes in pixels of (width, height)."""

    image: str
    width: int
    height: int
    things: list[Thing]
    split: str


def readable_name(name: str | None) -> str | None:
    """The class name, cleaned for expressions; None if it is missing or in another encoding."""
    try:
        clean = clean_expression(name or "")
    except ExpressionError:
        return None
    return None if LOST_LETTER in clean else clean


def sure(classes: Sequence[str], vague: Collection[str | None]) -> list[str]:
    """The classes that are not `vague`, whose places are all known; empty if `vague` has None, an unknown class."""
    return [] if None in vague else [name for name in classes if name not in vague]


def describe_each(
    entries: Iterable[Labelled | Rejected], classes: Sequence[str], images: Path | None
) -> Iterator[Record | Rejected]:
    """`describe` for each image, with the things of all its entries. An entry of another size than the first one's is
    not used: its things are somewhere in the image."""
    merged: dict[str, Labelled] = {}
    for entry in entries:
        if isinstance(entry, Rejected):
            yield entry
            continue
        whole = merged.setdefault(entry.image, entry._replace(things=[]))
        agrees = (entry.width, entry.height) == (whole.width, whole.height)
        if not agrees:
            yield Rejected("image size differs from an earlier entry of the image", entry.image)
        whole.things.extend(thing if agrees else Thing(thing.name, None) for thing in entry.things)
    for labelled in merged.values():
        try:
            yield from describe(labelled, classes, images)
        except RowError as error:
            yield Rejected(str(error), labelled.image)


def describe(labelled: Labelled, classes: Sequence[str], images: Path | None) -> Iterator[Record | Rejected]:
    """Unambiguous expressions, the same on every run, and names of other classes as absent objects. If the image is
    there, labels made at another size are scaled to it. Absent names assume that every class was labelled in every
    image; if a label has no name, there are none. Raises `RowError`."""
    check_image_path(labelled.image)
    if labelled.width <= 0 or labelled.height <= 0:
        raise RowError("image has no size")
    width, height = upright_size(images / labelled.image) if images else (labelled.width, labelled.height)
    scale_x, scale_y = width / labelled.width, height / labelled.height
    if abs(scale_x / scale_y - 1) > STRETCH:
        raise RowError("image size differs from the annotation")
    names: list[str] = []
    boxes: list[Box] = []
    vague: set[str | None] = set()
    for number, (name, labelled_box, crowd) in enumerate(labelled.things, 1):
        if name is None or labelled_box is None:  # its reader has counted it
            vague.add(name)
            continue
        try:
            x1, y1, x2, y2 = check_box(labelled_box, labelled.width, labelled.height)
        except RowError as error:
            yield Rejected(str(error), f"{labelled.image}: object {number}")
            crowd = True  # it is somewhere in the image, so its name would be ambiguous
        if crowd:
            vague.add(name)
        else:
            names.append(name)
            boxes.append((x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y))
    known = [i for i, name in enumerate(names) if name not in vague]
    names, boxes = [names[i] for i in known], [boxes[i] for i in known]
    absent = sure(classes, vague)
    rng = random.Random(labelled.image)
    found = describe_objects(rng, names, boxes, max(width, height), absent, EXPRESSIONS_PER_IMAGE)
    if not found:
        raise RowError("nothing unambiguous to say")
    for number, expression in enumerate(found):
        target = next(iter(expression.targets), None)
        yield Record(
            id=f"{labelled.image}-{number}", image=labelled.image, width=width, height=height,
            expression=expression.text, box_xyxy=None if target is None else boxes[target], split=labelled.split,
            tags={"kind": expression.kind} | ({} if target is None else {"class": names[target]}),
        )  # fmt: skip
