"""RefDrone, and other files in MDETR's layout: a COCO file in which each entry of `images` is an expression.

gRefCOCO's own converter (grefexp_coco_format.py) writes this layout too.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from referent.core.boxes import Box
from referent.data.readers.coco import CocoAnnotation, CocoImage, by_id, category_names, id_in
from referent.data.readers.grefcoco import NO_TARGET, referents
from referent.data.readers.rows import json_array, split_of, to_records
from referent.data.records import AnnotationError, Record, Rejected, RowError, wrong_schema


class CaptionedImage(CocoImage):
    """An expression and the image that it is of; `id` is the expression's."""

    caption: str


class CaptionAnnotation(CocoAnnotation):
    """One of the objects that an expression means; an `empty` one says that it means none."""

    empty: bool = False


def read_refdrone(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """The split is taken from the file's name. An expression without annotations, or with one that can't be read, is
    left out, since the number of its objects is unknown. Raises `AnnotationError` for an annotation that may belong to
    any expression."""
    names = yield from category_names(annotations)
    expressions = yield from by_id(annotations, "images", CaptionedImage)
    meant: dict[int | str, list[CaptionAnnotation | None]] = {}  # None: one that can't be read
    where = ""
    for where, row in json_array(annotations, "annotations.item"):
        image_id = id_in(row, "image_id")
        if image_id is None or image_id not in expressions:
            raise AnnotationError(
                f"{annotations.with_name(where)}: image_id {image_id} is that of no expression, so the number of "
                "objects of every expression is unknown: correct it, or remove the annotation"
            )
        entry = None
        try:
            entry = CaptionAnnotation.model_validate(row)
        except ValidationError as error:
            yield wrong_schema(error, where)
        meant.setdefault(image_id, []).append(entry)
    if not where:
        raise AnnotationError(f"{annotations} has no annotations: a file of this layout has images and annotations")
    split = split_of(annotations.with_name(annotations.name.replace("_mdetr", "")))

    def convert(image: CaptionedImage, where: str) -> Iterator[Record]:
        boxes, classes = _objects(meant.get(image.id, []))
        called = {names.get(category, str(category)) for category in classes}
        yield Record.model_validate(
            {
                "id": str(image.id), "image": image.file_name, "width": image.width, "height": image.height,
                "expression": image.caption, "split": split,
                "tags": {"class": called.pop()} if len(called) == 1 else {},
            }
            | referents(boxes)
        )  # fmt: skip

    rows = ((f"{annotations.name}: image {id}", image) for id, image in expressions.items() if image is not None)
    yield from to_records(rows, CaptionedImage, convert)


def _objects(entries: list[CaptionAnnotation | None]) -> tuple[list[Box], list[int | str]]:
    """Boxes and categories. Raises `RowError`."""
    known = [entry for entry in entries if entry is not None]
    if len(known) < len(entries):
        raise RowError("an annotation of this expression can't be read")
    if not known:
        raise RowError("no annotation for this expression")
    shown = [entry for entry in known if not (entry.empty or entry.category_id == NO_TARGET)]
    if shown and len(shown) < len(known):
        raise RowError("an empty annotation beside others")
    return [entry.box_xyxy for entry in shown], [entry.category_id for entry in shown]
