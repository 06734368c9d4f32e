"""Readers of published annotation formats; each yields records. `READERS` is the table of all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from referent.core.files import printable
from referent.core.text_files import TextFileError
from referent.data.readers.coco import read_coco
from referent.data.readers.conversations import read_conversations
from referent.data.readers.grefcoco import read_grefcoco
from referent.data.readers.gseval import read_gseval
from referent.data.readers.label_studio import read_label_studio
from referent.data.readers.pixmo import read_pixmo
from referent.data.readers.rec import read_rec
from referent.data.readers.refcoco import read_refcoco
from referent.data.readers.refdrone import read_refdrone
from referent.data.readers.refer import read_refer
from referent.data.readers.referit import read_referit
from referent.data.readers.table import COLUMNS, read_csv
from referent.data.readers.voc import read_voc
from referent.data.readers.yolo import read_yolo
from referent.data.records import AnnotationError, Record, Rejected, RowError, check_record, read_records


def read_jsonl(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Referent's own records."""
    return read_records(annotations)


class AnnotationFormat(NamedTuple):
    """`expects` is for messages: what a file or a row of it contains. docs/data.md shows one of each."""

    read: Callable[[Path, Path | None], Iterator[Record | Rejected]]
    expects: str


READERS = {
    "jsonl": AnnotationFormat(
        read_jsonl,
        'lines {"id", "image", "width", "height", "expression", "box_xyxy": [x1, y1, x2, y2] in pixels, or no box for '
        "what the image does not show}",
    ),
    "csv": AnnotationFormat(read_csv, f"columns {', '.join(COLUMNS)}: one row for each object, corners in pixels"),
    "coco": AnnotationFormat(
        read_coco,
        'an object of "images" {"id", "file_name", "width", "height"}, "annotations" {"image_id", "category_id", '
        '"bbox": [x, y, width, height] in pixels} and "categories" {"id", "name"}',
    ),
    "yolo": AnnotationFormat(
        read_yolo,
        "a folder with data.yaml (`names`) or classes.txt, images/ and labels/, in which a line is class, centre x, "
        "centre y, width, height in 0..1",
    ),
    "voc": AnnotationFormat(
        read_voc,
        "a folder of XML files: filename, size/width and size/height; of each object name and bndbox/xmin, ymin, xmax, "
        "ymax in pixels from 1",
    ),
    "label-studio": AnnotationFormat(
        read_label_studio, "the export JSON or JSON-MIN: a list of tasks, boxes x, y, width, height in percent"
    ),
    "conversations": AnnotationFormat(
        read_conversations,
        'rows {"id", "image", "conversations": [{"from", "value"}]} with [x1, y1, x2, y2] in 0..1 of the padded '
        "square in the answers",
    ),
    "pixmo": AnnotationFormat(
        read_pixmo, 'rows {"image_url", "label", "points": [{"x", "y"}] in percent of the image, "count"}'
    ),
    "refer": AnnotationFormat(read_refer, "a folder of refs(SPLITTER).p and instances.json"),
    "grefcoco": AnnotationFormat(read_grefcoco, "a folder of grefs(SPLITTER).json and instances.json"),
    "refdrone": AnnotationFormat(
        read_refdrone,
        'an object of "images" {"id", "file_name", "width", "height", "caption"}, one for each expression, '
        '"annotations" {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "empty"} and "categories"',
    ),
    "refcoco": AnnotationFormat(
        read_refcoco, 'rows {"image", "text", "bbox": [centre x, centre y, width, height] in 0..1 of the image}'
    ),
    "rec": AnnotationFormat(read_rec, 'lines {"image", "sent", "bbox": [x1, y1, x2, y2] in pixels, "height", "width"}'),
    "referit": AnnotationFormat(
        read_referit, "a folder of referit_query_SPLIT.json, referit_bbox.json and referit_imsize.json"
    ),
    "gseval": AnnotationFormat(
        read_gseval,
        'rows {"idx", "image_path", "class_id", "label", "caption", "box": [x1, y1, x2, y2] in pixels, "segmentation": '
        '{"size": [height, width], "counts"}}',
    ),
}


def read(format: str, annotations: Path, images: Path | None = None) -> Iterator[Record | Rejected]:
    """Records that can be used, and a `Rejected` for everything else. Images are opened only if a format needs their
    size. Raises `AnnotationError` or `OSError` if the annotations as a whole cannot be read."""
    if format not in READERS:
        raise AnnotationError(f"unknown format {format!r}; there are {', '.join(READERS)}")
    try:
        for item in READERS[format].read(annotations, images):
            found = item if isinstance(item, Rejected) else _checked(item, annotations)
            yield found._replace(where=printable(found.where)) if isinstance(found, Rejected) else found
    except TextFileError as error:
        raise AnnotationError(str(error)) from error


def _checked(record: Record, annotations: Path) -> Record | Rejected:
    try:
        return check_record(record)
    except RowError as error:
        return Rejected(str(error), place(annotations, record))


def place(annotations: Path, record: Record) -> str:
    """The file and id that a record came from; the ids of some formats begin with the file's name already."""
    return record.id if record.id.startswith(annotations.name) else f"{annotations.name}: {record.id}"
