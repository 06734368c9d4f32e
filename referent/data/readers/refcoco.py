"""RefCOCO in the format of visual-grounding-api: rows {image, text, bbox}, pickled or as JSON lines."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from referent.core.boxes import Box, cxcywh_to_xyxy
from referent.data.image_files import upright_size
from referent.data.pickles import load_pickle
from referent.data.readers.rows import AnnotationRows, json_rows, need_images, split_of, to_records
from referent.data.records import AnnotationError, Record, Rejected


class RefCocoRow(BaseModel):
    """`bbox` is centre x, centre y, width, height in 0..1 of the image."""

    image: str
    text: str
    bbox: Box


def read_refcoco(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """The split is what the file's name ends with; pixels come from the size of each image."""
    folder, split = need_images(images, "boxes are shares of each image's size"), split_of(annotations)

    def convert(row: RefCocoRow, where: str) -> Iterator[Record]:
        width, height = upright_size(folder / row.image)
        x1, y1, x2, y2 = (cxcywh_to_xyxy(np.array(row.bbox)) * (width, height, width, height)).tolist()
        yield Record(
            id=where, image=row.image, width=width, height=height, expression=row.text, box_xyxy=(x1, y1, x2, y2),
            split=split,
        )  # fmt: skip

    rows = _pickled(annotations) if annotations.suffix in (".p", ".pkl", ".pickle") else json_rows(annotations)
    return to_records(rows, RefCocoRow, convert)


def _pickled(file: Path) -> AnnotationRows:
    rows = load_pickle(file)
    if not isinstance(rows, list):
        raise AnnotationError(f"{file.name} holds a {type(rows).__name__}; a list of rows is expected")
    yield from ((f"{file.name}:{number}", row) for number, row in enumerate(rows, 1))
