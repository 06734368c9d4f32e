"""Shared by readers: reads rows of a file one at a time, and turns rows into records or reasons for rejection."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import ijson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from referent.core.text_files import numbered_lines, open_utf8, read_lines
from referent.data.records import AnnotationError, Rejected, RowError, no_json, wrong_schema

RowModel = TypeVar("RowModel", bound=BaseModel)
Item = TypeVar("Item")  # what a row becomes
AnnotationRows = Iterator[tuple[str, object] | Rejected]  # the place, and the row

SPLIT_NAME = re.compile(r"(?:^|[^a-z])(trainval|train|val|testA|testB|test)\d*$", re.IGNORECASE)
REMEDIES = {"EOF": ": is the file whole?", "trailing characters": ": name a file of JSON lines .jsonl"}


def json_rows(file: Path) -> AnnotationRows:
    """AnnotationRows of a JSON-lines file (.jsonl), or of the one array in a JSON file, in constant memory."""
    return _json_lines(file) if file.suffix == ".jsonl" else json_array(file, "item")


def json_array(file: Path, path: str) -> Iterator[tuple[str, object]]:
    """The items at ijson's `path`, such as "images.item", with their places. Raises `AnnotationError` and
    `TextFileError` if the file is cut off or not JSON, since the rest of it can't be read."""
    with open_utf8(file) as stream:
        try:
            for number, item in enumerate(ijson.items(stream, path, use_float=True), 1):
                yield f"{file.name}:{path.removesuffix('item')}{number}", item
        except (ijson.JSONError, UnicodeError) as error:
            fault = _json_fault(file) or f"{str(error).splitlines()[0]}: write numbers of over 18 digits as text"
            raise AnnotationError(f"{file} is not JSON: {fault}") from error


def _json_fault(file: Path) -> str | None:
    """The fault that stops a JSON file, its line and the remedy. Raises `TextFileError` if it is not UTF-8."""
    text = "".join(read_lines(file))
    try:
        from_json(text, allow_inf_nan=False)
    except ValueError as error:
        return f"{error}{next((remedy for start, remedy in REMEDIES.items() if str(error).startswith(start)), '')}"
    return None


def _json_lines(file: Path) -> AnnotationRows:
    for number, line in numbered_lines(file):
        where = f"{file.name}:{number}"
        try:
            yield where, from_json(line)
        except ValueError:
            yield no_json(file, number, line)


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
    if not found:
        return default
    split = found.group(1).lower()
    return {"testa": "testA", "testb": "testB"}.get(split, split)


def need_images(images: Path | None, why: str) -> Path:
    """The image folder, for formats whose boxes can't be read without it. Raises `AnnotationError`."""
    if images is None:
        raise AnnotationError(f"the folder of images is needed (--images): {why}")
    return images
