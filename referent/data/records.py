"""A record of grounding data from any source: an image, an expression, and where its referent is.

A prepared dataset is a JSON-lines file of records; image paths are relative to an image folder. A row of a source that
can't become a record is a `Rejected` with its reason: it is counted, and reading continues.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import from_json

from referent.core.answers import Point
from referent.core.boxes import Box
from referent.core.files import printable
from referent.core.prompts import MAX_EXPRESSION_CHARACTERS, ExpressionError, clean_expression
from referent.core.text_files import has_end, numbered_lines

WRONG_SCHEMA = "wrong schema: "  # and the first field that is wrong
NO_JSON = f"{WRONG_SCHEMA}json"
OTHER_ENCODING = "text of another encoding: save the file as UTF-8"
LOST_LETTER = "\ufffd"  # replaces bytes that can't be decoded
OVERHANG = 0.01  # of the longer side: how far a box may extend beyond the image, since some sources round
MAX_PIXELS = 50_000_000  # of a mask
MAX_SHIFT = 30  # bits of the runs of a mask


class Mask(BaseModel):
    """A COCO run-length encoding, compressed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[PositiveInt, PositiveInt] = Field(description="(height, width)")
    counts: str

    @model_validator(mode="after")
    def _fits_its_size(self) -> Self:
        """COCO's own decoder never ends, or writes beyond its memory, if the runs do not fit the size."""
        pixels = self.size[0] * self.size[1]
        runs = run_lengths(self.counts)
        if pixels > MAX_PIXELS or min(runs, default=0) < 0 or sum(runs) != pixels:
            raise ValueError("mask does not fit its size")
        return self


class Record(BaseModel):
    """An expression about an image. If it has neither boxes nor points, its object is absent from the image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="of this record, unique in its dataset")
    image: str = Field(description="path in the image folder")
    width: int = Field(gt=0, description="of the image in pixels, upright (EXIF applied)")
    height: int = Field(gt=0)
    expression: str
    box_xyxy: Box | None = Field(default=None, description="pixels of the image")
    boxes_xyxy: tuple[Box, ...] | None = Field(
        default=None, min_length=1,
        description="pixels, one for each referent, of an expression that means several; box_xyxy is then left out",
    )  # fmt: skip
    points: tuple[Point, ...] | None = Field(
        default=None, min_length=1, description="pixels of the image, one for each instance"
    )
    mask: Mask | None = None
    split: str = Field(default="train", pattern=r"^[\w-]{1,40}$", description="names a file")
    tags: dict[str, str] = Field(default_factory=dict, description="groups for reports, such as kind or class")

    @property
    def present(self) -> bool:
        """Whether the image shows the object."""
        return bool(self.boxes or self.points)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes of all referents, one or several; empty if the object is absent or the record has points."""
        return self.boxes_xyxy or ((self.box_xyxy,) if self.box_xyxy is not None else ())


class Rejected(NamedTuple):
    """A sample that could not become a record."""

    reason: str  # one of a few fixed texts, under which it is counted
    where: str  # file, row or id

    @property
    def is_of_wrong_schema(self) -> bool:
        """Whether the row does not have the fields that its format expects."""
        return self.reason.startswith(WRONG_SCHEMA)


class AnnotationError(ValueError):
    """The annotations as a whole cannot be read; the message names the file and the remedy."""


class RowError(ValueError):
    """A row can't become a record; the message is the reason under which it is counted."""


def read_records(file: Path) -> Iterator[Record | Rejected]:
    """The rows of a JSON-lines file of records, one at a time. Raises OSError and `AnnotationError`."""
    for number, line in numbered_lines(file):
        try:
            yield Record.model_validate_json(line)
        except ValidationError as error:
            rejected = wrong_schema(error, f"{file.name}:{number}")
            yield no_json(file, number, line) if rejected.reason == NO_JSON else rejected


def write_records(file: Path, records: Iterable[Record]) -> int:
    """Write a JSON-lines file; returns the number of rows."""
    with file.open("w", encoding="utf-8") as lines:
        return sum(bool(lines.write(record_line(record))) for record in records)


def record_line(record: Record) -> str:
    """A row of a JSON-lines file; fields at their default are left out."""
    return record.model_dump_json(exclude_none=True, exclude_defaults=True) + "\n"


def run_lengths(counts: str) -> list[int]:
    """The runs of COCO's compressed encoding. Five bits of a number are in a character, from 48 on, the lowest first;
    0x20 marks that more follow, 0x10 in the last one a negative number. From the fourth run on, a number is the
    difference to the run two before. Raises ValueError."""
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > MAX_SHIFT:
            raise ValueError(f"{character!r} does not belong in a mask")
        number |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("the mask is cut off")
    return runs


def no_json(file: Path, number: int, line: bytes) -> Rejected:
    """The rejection of a line that is not JSON, or holds no object. Raises `AnnotationError` if it is cut off."""
    where = f"{file.name}:{number}"
    try:
        from_json(line)
    except ValueError as error:
        if str(error).startswith("EOF") and not has_end(line):
            raise AnnotationError(f"{file}:{number} is cut off: get the whole file") from error
    try:
        line.decode()
    except UnicodeDecodeError:
        return Rejected(OTHER_ENCODING, where)
    return Rejected(NO_JSON, where)


def wrong_schema(error: ValidationError, where: str) -> Rejected:
    """The rejection of a row of the wrong shape, counted under its first wrong field."""
    field = ".".join(str(part) for part in error.errors()[0]["loc"] if not isinstance(part, int)) or "json"
    return Rejected(f"{WRONG_SCHEMA}{field}", where)


def check_record(record: Record) -> Record:
    """The record with a clean expression and its boxes clipped to the image. Raises `RowError` if it can't be used."""
    try:
        expression = clean_expression(record.expression)
    except ExpressionError as error:
        raise RowError(_expression_fault(record.expression)) from error
    if LOST_LETTER in expression:
        raise RowError("letters of the expression were lost in another encoding")
    check_image_path(record.image)
    if record.mask and not record.present:
        raise RowError("mask without a box or points")
    if record.mask and record.mask.size != (record.height, record.width):
        raise RowError("mask of another size than its image")
    if record.box_xyxy and record.boxes_xyxy:
        raise RowError("both box_xyxy and boxes_xyxy")
    box = record.box_xyxy and check_box(record.box_xyxy, record.width, record.height)
    boxes = record.boxes_xyxy and tuple(check_box(each, record.width, record.height) for each in record.boxes_xyxy)
    points = record.points and tuple(_check_point(point, record.width, record.height) for point in record.points)
    if (expression, box, boxes, points) == (record.expression, record.box_xyxy, record.boxes_xyxy, record.points):
        return record
    return record.model_copy(update={"expression": expression, "box_xyxy": box, "boxes_xyxy": boxes, "points": points})


def check_image_path(image: str) -> None:
    """Raises `RowError` unless the path is UTF-8 and stays in the image folder."""
    if printable(image) != image:
        raise RowError("image name of another encoding")
    path = PurePosixPath(image)
    if not image or path.is_absolute() or ".." in path.parts:
        raise RowError("image path leaves the image folder")


def _leaves(box_xyxy: Box, width: int, height: int) -> bool:
    """Whether it leaves the image by more than `OVERHANG` and more than a pixel."""
    x1, y1, x2, y2 = box_xyxy
    slack = max(1, OVERHANG * max(width, height))
    return min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack


def _check_point(point: Point, width: int, height: int) -> Point:
    x, y = point
    if not (math.isfinite(x) and math.isfinite(y)):
        raise RowError("point is not a number")
    if _leaves((x, y, x, y), width, height):
        raise RowError("point outside the image")
    return min(max(0.0, x), float(width)), min(max(0.0, y), float(height))


def check_box(box_xyxy: Box, width: int, height: int) -> Box:
    """The box, clipped to the image. Raises `RowError` if it is not a box in pixels, or leaves the image by more than
    `OVERHANG` and more than a pixel."""
    x1, y1, x2, y2 = box_xyxy
    if not all(map(math.isfinite, box_xyxy)):
        raise RowError("box is not a number")
    if x2 <= x1 or y2 <= y1:
        raise RowError("box has no area")
    if max(box_xyxy) <= 1 < max(width, height):
        raise RowError("box in shares of the image, where pixels are expected")
    if _leaves(box_xyxy, width, height):
        raise RowError("box outside the image")
    clipped = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise RowError("box outside the image")
    return clipped


def _expression_fault(expression: str) -> str:
    text = " ".join(expression.split())
    if not text:
        return "empty expression"
    if len(text) > MAX_EXPRESSION_CHARACTERS:
        return f"expression over {MAX_EXPRESSION_CHARACTERS} characters"
    return "control characters in the expression"
