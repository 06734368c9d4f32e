"""COCO detection files: images, annotations and categories in one JSON file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from referent.core.boxes import Box
from referent.data.readers.detection import Labelled, Thing, describe
from referent.data.readers.rows import json_array, split_of, to_records
from referent.data.records import Record, Rejected, wrong_schema


class CocoImage(BaseModel):
    """An entry of `images`."""

    id: int
    file_name: str
    width: int
    height: int


class CocoAnnotation(BaseModel):
    """An entry of `annotations`; `bbox` is x, y, width, height in pixels."""

    id: int = 0
    image_id: int
    category_id: int
    bbox: Box
    iscrowd: int = 0

    @property
    def box_xyxy(self) -> Box:
        """Corners in pixels."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height


class CocoCategory(BaseModel):
    """An entry of `categories`."""

    id: int
    name: str


Entry = TypeVar("Entry", CocoImage, CocoAnnotation, CocoCategory)


def entries(file: Path, key: str, model: type[Entry]) -> Iterator[Entry | Rejected]:
    """The list under `key`, one at a time: polygons, most of such a file, are let go."""
    for item in json_array(file, f"{key}.item"):
        if isinstance(item, Rejected):
            yield item
            continue
        where, row = item
        try:
            yield model.model_validate(row)
        except ValidationError as error:
            yield wrong_schema(error, where)


def category_names(file: Path) -> dict[int, str]:
    """Id -> name."""
    return {c.id: c.name for c in entries(file, "categories", CocoCategory) if not isinstance(c, Rejected)}


def read_coco(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image; the split is what the file's name ends with."""
    names, split = category_names(annotations), split_of(annotations)
    things: dict[int, list[Thing]] = {}
    for entry in entries(annotations, "annotations", CocoAnnotation):
        if isinstance(entry, Rejected):
            yield entry
        elif entry.category_id not in names:
            yield Rejected("unknown category", f"{annotations.name}: annotation {entry.id}")
        else:
            thing = Thing(names[entry.category_id], entry.box_xyxy, bool(entry.iscrowd))
            things.setdefault(entry.image_id, []).append(thing)
    classes = sorted(set(names.values()))

    def convert(image: CocoImage, where: str) -> Iterable[Record | Rejected]:
        labelled = Labelled(image.file_name, image.width, image.height, things.get(image.id, []), split)
        return describe(labelled, classes, images)

    yield from to_records(json_array(annotations, "images.item"), CocoImage, convert)
