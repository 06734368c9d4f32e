"""Readers: annotations of published formats into records. `READERS` is the table of all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from referent.core.text_files import TextFileError
from referent.data.readers.coco import read_coco
from referent.data.readers.conversations import read_conversations
from referent.data.readers.gseval import read_gseval
from referent.data.readers.pixmo import read_pixmo
from referent.data.readers.refcoco import read_refcoco
from referent.data.readers.refer import read_refer
from referent.data.readers.referit import read_referit
from referent.data.readers.table import read_csv
from referent.data.readers.voc import read_voc
from referent.data.records import AnnotationError, Record, Rejected, RowError, check_record, read_records


def read_jsonl(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Referent's own records."""
    return read_records(annotations)


READERS: dict[str, Callable[[Path, Path | None], Iterator[Record | Rejected]]] = {
    "jsonl": read_jsonl,
    "refer": read_refer,
    "refcoco": read_refcoco,
    "referit": read_referit,
    "gseval": read_gseval,
    "conversations": read_conversations,
    "pixmo": read_pixmo,
    "coco": read_coco,
    "voc": read_voc,
    "csv": read_csv,
}


def read(format: str, annotations: Path, images: Path | None = None) -> Iterator[Record | Rejected]:
    """Records that are fit for use, and a `Rejected` for everything that is not. Raises `AnnotationError` or `OSError`
    where the annotations as a whole cannot be read; images are opened only where a format needs their size."""
    if format not in READERS:
        raise AnnotationError(f"unknown format {format!r}; there are {', '.join(READERS)}")
    try:
        for item in READERS[format](annotations, images):
            yield item if isinstance(item, Rejected) else _checked(item, annotations)
    except TextFileError as error:
        raise AnnotationError(str(error)) from error


def _checked(record: Record, annotations: Path) -> Record | Rejected:
    try:
        return check_record(record)
    except RowError as error:
        return Rejected(str(error), place(annotations, record))


def place(annotations: Path, record: Record) -> str:
    """Where the record came from; ids of some formats say it already."""
    return record.id if record.id.startswith(annotations.name) else f"{annotations.name}: {record.id}"
