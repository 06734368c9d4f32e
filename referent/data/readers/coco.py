"""COCO detection files: images, annotations and categories in one JSON file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from referent.core.boxes import Box
from referent.data.readers.detection import NAMELESS, Labelled, Thing, describe, readable_name, sure
from referent.data.readers.rows import json_array, split_of, to_records
from referent.data.records import AnnotationError, Record, Rejected, wrong_schema


def one_id(value: object) -> object:
    """Turns 7.0 and "7" into 7, since files write the same id in several ways."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else value


CocoId = Annotated[int | str, BeforeValidator(one_id)]


class CocoImage(BaseModel):
    """An entry of `images`."""

    id: CocoId
    file_name: str
    width: int
    height: int


class CocoAnnotation(BaseModel):
    """An entry of `annotations`; `bbox` is x, y, width, height in pixels."""

    id: CocoId = 0
    image_id: CocoId
    category_id: CocoId
    bbox: Box
    iscrowd: int | None = 0

    @property
    def box_xyxy(self) -> Box:
        """Corners in pixels."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height


class CocoCategory(BaseModel):
    """An entry of `categories`."""

    id: CocoId
    name: str


Entry = TypeVar("Entry", CocoImage, CocoAnnotation, CocoCategory)


def entries(file: Path, key: str, model: type[Entry]) -> Iterator[Entry | Rejected]:
    """The list under `key`, one entry at a time, without polygons, which are most of such a file."""
    for item in json_array(file, f"{key}.item"):
        if isinstance(item, Rejected):
            yield item
            continue
        where, row = item
        try:
            yield model.model_validate(row)
        except ValidationError as error:
            yield wrong_schema(error, where)


def category_names(file: Path) -> dict[int | str, str]:
    """Category id -> name."""
    return {c.id: c.name for c in entries(file, "categories", CocoCategory) if not isinstance(c, Rejected)}


def read_coco(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image; the split is what the file's name ends with."""
    split = split_of(annotations)
    names: dict[int | str, str] = {}
    for category in entries(annotations, "categories", CocoCategory):
        if isinstance(category, Rejected):
            yield category
        elif name := readable_name(category.name):
            names[category.id] = name
        else:
            yield Rejected(NAMELESS, f"{annotations.name}: category {category.id}")
    things: dict[object, list[Thing]] = {}
    lost: set[str | None] = set()  # names of objects whose image is unknown
    where = ""
    for item in json_array(annotations, "annotations.item"):
        if isinstance(item, Rejected):
            yield item
            continue
        where, row = item
        try:
            entry = CocoAnnotation.model_validate(row)
        except ValidationError as error:
            yield wrong_schema(error, where)
            said = row if isinstance(row, dict) else {}
            image_id, category_id = one_id(said.get("image_id")), one_id(said.get("category_id"))
            name = names.get(category_id) if isinstance(category_id, int | str) else None
            if isinstance(image_id, int | str):
                things.setdefault(image_id, []).append(Thing(name, None))
            else:
                lost.add(name)
            continue
        if entry.category_id not in names:
            yield Rejected("unknown category", f"{annotations.name}: annotation {entry.id}")
        thing = Thing(names.get(entry.category_id), entry.box_xyxy, bool(entry.iscrowd))
        things.setdefault(entry.image_id, []).append(thing)
    if not where:
        raise AnnotationError(f"{annotations} has no annotations: a COCO file has images, annotations and categories")
    classes = sure(sorted(set(names.values())), lost)

    def convert(image: CocoImage, where: str) -> Iterable[Record | Rejected]:
        labelled = Labelled(image.file_name, image.width, image.height, things.get(image.id, []), split)
        return describe(labelled, classes, images)

    yield from to_records(json_array(annotations, "images.item"), CocoImage, convert)
