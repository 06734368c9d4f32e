"""Referring expression comprehension as Qwen-VL and VPP-LLaVA evaluate it: JSON lines of an image, a sentence, a box.

RefCOCO, RefCOCO+, RefCOCOg and ReferIt are published in this format, with a file for each split.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, PositiveInt

from referent.core.boxes import Box
from referent.data.readers.rows import json_rows, split_of, to_records
from referent.data.records import Record, Rejected


class RecRow(BaseModel):
    """`bbox` is xyxy in pixels of the image, `height` and `width` are the image's."""

    image: str
    sent: str
    bbox: Box
    height: PositiveInt
    width: PositiveInt


def read_rec(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """The split is what the file's name ends with; no image is needed."""
    split = split_of(annotations, default="test")

    def convert(row: RecRow, where: str) -> Iterator[Record]:
        yield Record(
            id=where, image=row.image, width=row.width, height=row.height, expression=row.sent, box_xyxy=row.bbox,
            split=split,
        )  # fmt: skip

    return to_records(json_rows(annotations), RecRow, convert)
