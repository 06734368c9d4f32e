"""Shared by readers: reads rows of a file one at a time, and turns rows into records or reasons for rejection."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import ijson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from referent.core.text_files import numbered_lines, open_utf8
from referent.data.records import NO_JSON, AnnotationError, Rejected, RowError, wrong_schema

RowModel = TypeVar("RowModel", bound=BaseModel)
Item = TypeVar("Item")  # what a row becomes
AnnotationRows = Iterator[tuple[str, object] | Rejected]  # the place, and the row

SPLIT_NAME = re.compile(r"(trainval|train|val|testA|testB|test)\d*$")


def json_rows(file: Path) -> AnnotationRows:
    """AnnotationRows of a JSON-lines file (.jsonl), or of the one array in a JSON file, in constant memory."""
    return _json_lines(file) if file.suffix == ".jsonl" else json_array(file, "item")


def json_array(file: Path, path: str) -> AnnotationRows:
    """The items at ijson's `path`, such as "images.item". Raises `AnnotationError` if the file is cut off or not JSON,
    since the rest of it can't be read."""
    number = 0
    with open_utf8(file) as stream:
        try:
            for number, item in enumerate(ijson.items(stream, path, use_float=True), 1):
                yield f"{file.name}:{path.removesuffix('item')}{number}", item
        except (ijson.JSONError, UnicodeError) as error:
            raise AnnotationError(f"{file} is not JSON after row {number}: is the file whole?") from error


def _json_lines(file: Path) -> AnnotationRows:
    for number, line in numbered_lines(file):
        where = f"{file.name}:{number}"
        try:
            yield where, from_json(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                raise AnnotationError(f"{file}:{number} is cut off: get the whole file") from error
            yield Rejected(NO_JSON, where)


def to_records(
    rows: Iterable[tuple[str, object] | Rejected],
    model: type[RowModel],
    convert: Callable[[RowModel, str], Iterable[Item | Rejected]],
) -> Iterator[Item | Rejected]:
    """Each row as `model`, then through `convert(row, where)`, which may raise `RowError`."""
    for item in rows:
        if isinstance(item, Rejected):
            yield item
            continue
        where, row = item
        try:
            yield from convert(model.model_validate(row), where)
        except ValidationError as error:
            yield wrong_schema(error, where)
        except RowError as error:
            yield Rejected(str(error), where)


def split_of(file: Path, default: str = "train") -> str:
    """The split that a file's name ends with: refcoco_val.jsonl -> val, instances_train2014.json -> train."""
    found = SPLIT_NAME.search(file.stem)
    return found.group(1) if found else default


def need_images(images: Path | None, why: str) -> Path:
    """The image folder, for formats whose boxes can't be read without it. Raises `AnnotationError`."""
    if images is None:
        raise AnnotationError(f"the folder of images is needed (--images): {why}")
    return images
