"""Detection labels as CSV: filename, width, height, class, xmin, ymin, xmax, ymax; a row for each object."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from referent.core.text_files import TableRow, has_end, read_table
from referent.data.readers.detection import NAMELESS, Labelled, Thing, describe_each, readable_name, sure
from referent.data.readers.rows import split_of
from referent.data.records import LOST_LETTER, WRONG_SCHEMA, AnnotationError, Record, Rejected, RowError, wrong_schema

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")


class CsvRow(BaseModel):
    """An object of an image; corners in pixels of (width, height)."""

    filename: str = Field(min_length=1)
    width: int
    height: int
    name: str = Field(alias="class")
    xmin: float
    ymin: float
    xmax: float
    ymax: float


def read_csv(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image; the split is what the file's name ends with.

    Raises `AnnotationError` for a file without these columns, or cut off.
    """
    _, rows = read_table(annotations, "replace")
    heading = next(rows, TableRow(1, [], ""))
    columns = [name.lower() for name in heading.cells]
    if missing := [name for name in COLUMNS if name not in columns]:
        raise AnnotationError(
            f"{annotations}:{heading.line}: no column {', '.join(missing)}: the first line names the columns, "
            f"{', '.join(COLUMNS)}"
        )
    if twice := [name for name in COLUMNS if columns.count(name) > 1]:
        raise AnnotationError(f"{annotations}:{heading.line}: column {', '.join(twice)} occurs twice: keep one")
    split = split_of(annotations)
    labelled: list[Labelled] = []
    unreadable: dict[str, list[Thing]] = {}
    lost: set[str | None] = set()  # names of objects whose image is unknown
    for line, cells, text in rows:
        where = f"{annotations.name}:{line}"
        try:
            row = _row(columns, cells)
        except ValidationError as error:
            fault = wrong_schema(error, where)
        except RowError as error:
            fault = Rejected(str(error), where)
        else:
            thing = Thing(row.name, (row.xmin, row.ymin, row.xmax, row.ymax))
            labelled.append(Labelled(row.filename, row.width, row.height, [thing], split))
            continue
        if not has_end(text):
            raise AnnotationError(
                f"{annotations}:{line} is cut off: get the whole file, or correct this line and end it"
            )
        yield fault
        said = {} if any(cells[len(columns) :]) else dict(zip(columns, cells, strict=False))
        image, name = said.get("filename"), readable_name(said.get("class"))
        if image and LOST_LETTER not in image:
            unreadable.setdefault(image, []).append(Thing(name, None))
        else:
            lost.add(name)
    classes = sure(sorted({thing.name for entry in labelled for thing in entry.things if thing.name}), lost)
    first = {entry.image: entry for entry in reversed(labelled)}
    more = [first[image]._replace(things=things) for image, things in unreadable.items() if image in first]
    yield from describe_each([*labelled, *more], classes, images)


def _row(columns: Sequence[str], cells: Sequence[str]) -> CsvRow:
    """Raises ValidationError and `RowError`."""
    if len(cells) < len(columns) or any(cells[len(columns) :]):  # spreadsheets add empty cells
        raise RowError(f"{WRONG_SCHEMA}more or fewer cells than columns")
    row = CsvRow.model_validate(dict(zip(columns, cells, strict=False)))
    name = readable_name(row.name)
    if name is None:
        raise RowError(NAMELESS)
    if LOST_LETTER in row.filename:
        raise RowError("image name of another encoding")
    return row.model_copy(update={"name": name})
