"""GSEval (GroundingSuite): JSON lines of captions with boxes and run-length masks."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, NonNegativeInt

from referent.core.boxes import Box
from referent.data.readers.rows import json_rows, to_records
from referent.data.records import MAX_PIXELS, Mask, Record, Rejected, RowError


class Segmentation(BaseModel):
    """COCO run lengths; `counts` is a list if it is not compressed."""

    size: tuple[NonNegativeInt, NonNegativeInt]  # height, width
    counts: str | list[NonNegativeInt]


class GsevalRow(BaseModel):
    """`box` is xyxy in pixels of an image of the mask's size."""

    idx: int | str
    image_path: str
    class_id: int
    label: str
    caption: str
    box: Box
    segmentation: Segmentation


def read_gseval(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Ids are the rows' `idx`; no image is needed."""

    def convert(row: GsevalRow, where: str) -> Iterator[Record]:
        height, width = row.segmentation.size
        yield Record(
            id=str(row.idx), image=row.image_path, width=width, height=height, expression=row.caption, box_xyxy=row.box,
            mask=_mask(row.segmentation), split="test", tags={"class_id": str(row.class_id), "label": row.label},
        )  # fmt: skip

    return to_records(json_rows(annotations), GsevalRow, convert)


def _mask(segmentation: Segmentation) -> Mask:
    """The mask, compressed; raises `RowError` if it can't be decoded."""
    from pycocotools import mask as coco

    counts = segmentation.counts
    try:
        if isinstance(counts, list):
            if sum(counts) > MAX_PIXELS:
                raise ValueError("COCO's own code would fail")
            counts = coco.frPyObjects({"size": segmentation.size, "counts": counts}, *segmentation.size)[
                "counts"
            ].decode()
        return Mask(size=segmentation.size, counts=counts)
    except ValueError as error:  # also pydantic's
        raise RowError("mask does not fit its size") from error
