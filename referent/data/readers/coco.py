"""COCO detection files: images, annotations and categories in one JSON file."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from referent.core.boxes import Box
from referent.data.readers.detection import NAMELESS, Labelled, Thing, describe_each, readable_name, sure
from referent.data.readers.rows import json_array, split_of
from referent.data.records import AnnotationError, Record, Rejected, wrong_schema

MAX_DIGITS = 18  # of an id that is a number


def one_id(value: object) -> object:
    """Turns 7.0 and "7" into 7, since files write the same id in several ways."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isdecimal() and len(value) <= MAX_DIGITS:
        return int(value)
    return value


CocoId = Annotated[int | str, BeforeValidator(one_id)]


class Identified(BaseModel):
    """An entry that others name."""

    id: CocoId


class CocoImage(Identified):
    """An entry of `images`."""

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


class CocoCategory(Identified):
    """An entry of `categories`."""

    name: str


WithId = TypeVar("WithId", bound=Identified)


def id_in(row: object, key: str) -> int | str | None:
    """The id under `key` of an entry that may be of any shape."""
    value = one_id(row.get(key)) if isinstance(row, dict) else None
    return value if isinstance(value, int | str) else None


def by_id(file: Path, key: str, model: type[WithId]) -> Generator[Rejected, None, dict[int | str, WithId | None]]:
    """Yields the faults of the list under `key`, and returns its entries by their ids. None stands for those that can't
    be used: of the wrong shape, or several with one id, since nobody knows which is meant."""
    found: dict[int | str, WithId | None] = {}
    for where, row in json_array(file, f"{key}.item"):
        try:
            entry = model.model_validate(row)
        except ValidationError as error:
            yield wrong_schema(error, where)
            if (id := id_in(row, "id")) is not None:
                found[id] = None
            continue
        if found.setdefault(entry.id, entry) != entry:
            yield Rejected(f"several {key} of one id", f"{where}: id {entry.id}")
            found[entry.id] = None
    return found


def annotation_entries(file: Path) -> Iterator[CocoAnnotation | Rejected]:
    """The annotations, one at a time, without polygons, which are most of such a file."""
    for where, row in json_array(file, "annotations.item"):
        try:
            yield CocoAnnotation.model_validate(row)
        except ValidationError as error:
            yield wrong_schema(error, where)


def category_names(file: Path) -> Generator[Rejected, None, dict[int | str, str]]:
    """Category id -> name, as `by_id`."""
    found = yield from by_id(file, "categories", CocoCategory)
    return {id: category.name for id, category in found.items() if category}


def read_coco(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image; the split is what the file's name ends with."""
    split = split_of(annotations)
    names: dict[int | str | None, str] = {}
    for id, said in (yield from category_names(annotations)).items():
        if name := readable_name(said):
            names[id] = name
        else:
            yield Rejected(NAMELESS, f"{annotations.name}: category {id}")
    pictures = yield from by_id(annotations, "images", CocoImage)
    things: dict[int | str | None, list[Thing]] = {}
    lost: set[str | None] = set()  # names of objects whose image is unknown
    where = ""
    for where, row in json_array(annotations, "annotations.item"):
        image_id, category_id = id_in(row, "image_id"), id_in(row, "category_id")
        name, box, crowd = names.get(category_id), None, False
        try:
            entry = CocoAnnotation.model_validate(row)
            box, crowd = entry.box_xyxy, bool(entry.iscrowd)
            if image_id not in pictures:
                yield Rejected("annotation of an unknown image", f"{where}: image {image_id}")
            elif name is None:
                yield Rejected("unknown category", f"{where}: category {category_id}")
        except ValidationError as error:
            yield wrong_schema(error, where)
        if image_id in pictures:
            things.setdefault(image_id, []).append(Thing(name, box, crowd))
        else:
            lost.add(name)
    if not where:
        raise AnnotationError(f"{annotations} has no annotations: a COCO file has images, annotations and categories")
    labelled = (
        Labelled(image.file_name, image.width, image.height, things.get(id, []), split)
        for id, image in pictures.items()
        if image is not None
    )
    yield from describe_each(labelled, sure(sorted(set(names.values())), lost), images)
