"""One record of grounding data, whatever its source: an image, an expression, and where its referent is.

A prepared dataset is a JSON-lines file of records; image paths are relative to an image folder. What a source has that is
no good record is a `Rejected`: counted and named, never lost and never fatal.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Box = tuple[float, float, float, float]
Point = tuple[float, float]


class Mask(BaseModel):
    """A COCO run-length encoding, compressed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] = Field(description="(height, width)")
    counts: str


class Record(BaseModel):
    """An expression about an image. Neither box nor points: its object is absent from the image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="of this record, unique in its dataset")
    image: str = Field(description="path in the image folder")
    width: int = Field(gt=0, description="of the image in pixels, upright (EXIF applied)")
    height: int = Field(gt=0)
    expression: str
    box_xyxy: Box | None = Field(None, description="pixels of the image")
    points: tuple[Point, ...] | None = Field(None, description="pixels of the image, one for each instance")
    mask: Mask | None = None
    split: str = "train"
    tags: dict[str, str] = Field(default_factory=dict, description="groups for reports, such as kind or class")

    @property
    def present(self) -> bool:
        """Whether the image shows the object."""
        return self.box_xyxy is not None or bool(self.points)


class Rejected(NamedTuple):
    """A sample that became no record."""

    reason: str  # one of a reader's few; the key that it is counted under
    where: str  # file, row or id


def read_records(file: Path) -> Iterator[Record | Rejected]:
    """The rows of a JSON-lines file of records, one at a time."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Record.model_validate_json(line)
            except ValidationError as error:
                field = ".".join(map(str, error.errors()[0]["loc"])) or "json"
                yield Rejected(f"wrong schema: {field}", f"{file.name}:{number}")


def write_records(file: Path, records: Iterable[Record]) -> int:
    """Write a JSON-lines file; returns the number of rows."""
    count = 0
    with file.open("w", encoding="utf-8") as lines:
        for count, record in enumerate(records, 1):
            lines.write(record.model_dump_json(exclude_none=True, exclude_defaults=True) + "\n")
    return count
