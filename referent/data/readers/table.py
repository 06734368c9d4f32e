"""Detection labels as CSV: filename, width, height, class, xmin, ymin, xmax, ymax; a row an object."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from referent.data.readers.detection import Labelled, Thing, describe
from referent.data.readers.rows import split_of
from referent.data.records import Record, Rejected, RowError, wrong_schema


class CsvRow(BaseModel):
    """An object of an image; corners in pixels of (width, height)."""

    filename: str
    width: int
    height: int
    name: str = Field(alias="class")
    xmin: float
    ymin: float
    xmax: float
    ymax: float


def read_csv(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image; the split is what the file's name ends with."""
    labelled: dict[str, list[CsvRow]] = {}
    with annotations.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = csv.DictReader(lines)
        try:
            for row in rows:
                try:
                    thing = CsvRow.model_validate({key: cell for key, cell in row.items() if key})
                    labelled.setdefault(thing.filename, []).append(thing)
                except ValidationError as error:
                    yield wrong_schema(error, f"{annotations.name}:{rows.line_num}")
        except csv.Error:
            yield Rejected("wrong schema: csv", f"{annotations.name}:{rows.line_num}")
    classes = sorted({thing.name for things in labelled.values() for thing in things})
    for name, things in labelled.items():
        try:
            yield from describe(_image(name, things, split_of(annotations)), classes, images)
        except RowError as error:
            yield Rejected(str(error), name)


def _image(name: str, rows: Iterable[CsvRow], split: str) -> Labelled:
    things = [Thing(row.name, (row.xmin, row.ymin, row.xmax, row.ymax)) for row in rows]
    first = next(iter(rows))
    return Labelled(name, first.width, first.height, things, split)
