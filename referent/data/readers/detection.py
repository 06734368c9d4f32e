"""Detection labels of one image into referring expressions; COCO, VOC and CSV readers share it."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from referent.core.boxes import Box
from referent.data.expressions import describe_objects
from referent.data.image_files import upright_size
from referent.data.records import Record, Rejected, RowError, check_box

EXPRESSIONS_PER_IMAGE = 8
STRETCH = 0.02  # by how much an image's proportions may differ from those that it was labelled at


class Thing(NamedTuple):
    """A labelled object. A crowd is a region of many: nothing of its name can be told apart."""

    name: str
    box_xyxy: Box
    crowd: bool = False


class Labelled(NamedTuple):
    """An image as it was labelled, boxes in pixels of (width, height)."""

    image: str
    width: int
    height: int
    things: Sequence[Thing]
    split: str


def describe(labelled: Labelled, classes: Sequence[str], images: Path | None) -> Iterator[Record | Rejected]:
    """Unambiguous expressions, the same ones every time, and names of other classes as absent objects. Where the image
    is at hand, labels made at another size are scaled to it. Absent names suppose that every class was labelled
    in every image. Raises `RowError`."""
    if labelled.width <= 0 or labelled.height <= 0:
        raise RowError("image has no size")
    width, height = upright_size(images / labelled.image) if images else (labelled.width, labelled.height)
    scale_x, scale_y = width / labelled.width, height / labelled.height
    if abs(scale_x / scale_y - 1) > STRETCH:
        raise RowError("image size differs from the annotation")
    names, boxes, vague = [], [], set()
    for number, (name, (x1, y1, x2, y2), crowd) in enumerate(labelled.things, 1):
        try:
            box = check_box((x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), width, height)
        except RowError as error:
            yield Rejected(str(error), f"{labelled.image}: object {number}")
            crowd = True  # it is somewhere in the image, so its name alone would not say which
        if crowd:
            vague.add(name)
        else:
            names.append(name)
            boxes.append(box)
    known = [i for i, name in enumerate(names) if name not in vague]
    names, boxes = [names[i] for i in known], [boxes[i] for i in known]
    absent = [name for name in classes if name not in vague]
    rng = random.Random(labelled.image)
    found = describe_objects(rng, names, boxes, max(width, height), absent, EXPRESSIONS_PER_IMAGE)
    if not found:
        raise RowError("nothing unambiguous to say")
    for number, expression in enumerate(found):
        target = expression.target
        yield Record(
            id=f"{labelled.image}-{number}", image=labelled.image, width=width, height=height,
            expression=expression.text, box_xyxy=None if target is None else boxes[target], split=labelled.split,
            tags={"kind": expression.kind} | ({} if target is None else {"class": names[target]}),
        )  # fmt: skip
