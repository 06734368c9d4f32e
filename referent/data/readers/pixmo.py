"""PixMo-Points rows: an image by URL, a label, and its points in percent of the image."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from referent.data.downloads import Download, cached_name
from referent.data.image_files import upright_size
from referent.data.readers.rows import json_rows, need_images, split_of, to_records
from referent.data.records import Record, Rejected, RowError


class PercentPoint(BaseModel):
    """0..100 of the image's width and height."""

    x: float
    y: float


class PixmoRow(BaseModel):
    """No points and a count of 0: the object is absent from the image."""

    image_url: str
    image_sha256: str | None = None
    label: str
    points: list[PercentPoint]
    count: int | None = None


def read_pixmo(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Images are the files that `referent.data.downloads` names by their URL."""
    folder, split = need_images(images, "points are shares of each image's size"), split_of(annotations)

    def convert(row: PixmoRow, where: str) -> Iterator[Record]:
        if not row.points and row.count != 0:
            raise RowError("no points")
        if row.count not in (None, len(row.points)):
            raise RowError("count is not the number of points")
        image = cached_name(row.image_url)
        width, height = upright_size(folder / image)
        points = tuple((point.x / 100 * width, point.y / 100 * height) for point in row.points)
        yield Record(
            id=where, image=image, width=width, height=height, expression=row.label, points=points or None, split=split
        )

    return to_records(json_rows(annotations), PixmoRow, convert)


def pixmo_downloads(annotations: Path) -> Iterator[Download]:
    """The images of the rows; rows of the wrong shape are skipped here, since the reader reports them."""
    for item in json_rows(annotations):
        row = item[1]
        if not isinstance(item, Rejected) and isinstance(row, dict) and isinstance(row.get("image_url"), str):
            yield Download(row["image_url"], row.get("image_sha256"))
