"""ReferIt (RefCLEF) as text_objseg lays it out: JSON files of queries, boxes and image sizes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from referent.core.boxes import Box
from referent.data.readers.rows import AnnotationRows, split_of, to_records
from referent.data.records import AnnotationError, Record, Rejected


class Crop(BaseModel):
    """A labelled region, named IMAGE_NUMBER, and its expressions; `box` is that of its outermost pixels, inclusive."""

    name: str
    queries: list[str]
    box: Box
    image: str
    size: tuple[int, int]  # width, height


def read_referit(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """A file `referit_query_SPLIT.json`, or a folder of several; boxes and sizes are in files beside it."""
    folder = annotations if annotations.is_dir() else annotations.parent
    files = sorted(folder.glob("referit_query_*.json")) if annotations.is_dir() else [annotations]
    if not files:
        raise AnnotationError(f"{folder} holds no referit_query_SPLIT.json")
    boxes, sizes = _load(folder / "referit_bbox.json"), _load(folder / "referit_imsize.json")

    def convert(crop: Crop, where: str) -> Iterator[Record]:
        x1, y1, x2, y2 = crop.box
        for number, query in enumerate(crop.queries):
            yield Record(
                id=f"{crop.name}-{number}", image=crop.image, width=crop.size[0], height=crop.size[1],
                expression=query, box_xyxy=(x1, y1, x2 + 1, y2 + 1), split=split,
            )  # fmt: skip

    for file in files:
        split = split_of(file)
        yield from to_records(_rows(_load(file), boxes, sizes), Crop, convert)


def _rows(queries: dict[str, Any], boxes: dict[str, Any], sizes: dict[str, Any]) -> AnnotationRows:
    for name, said in queries.items():
        image = name.rpartition("_")[0] + ".jpg"
        yield name, {"name": name, "queries": said, "box": boxes.get(name), "image": image, "size": sizes.get(image)}


def _load(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise AnnotationError(f"{file.name} is a JSON {type(loaded).__name__}; an object is expected")
    return loaded
