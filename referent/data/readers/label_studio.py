"""Label Studio's JSON and JSON-MIN exports. For its COCO, YOLO and Pascal VOC exports, use the readers of those."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, Field, ValidationError

from referent.core.boxes import Box
from referent.core.images import IMAGE_SUFFIXES
from referent.data.image_files import upright_size
from referent.data.readers.detection import NAMELESS, Labelled, Thing, describe, readable_name
from referent.data.readers.rows import json_array, split_of
from referent.data.records import WRONG_SCHEMA, AnnotationError, Record, Rejected, RowError, wrong_schema

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # added to the name of an uploaded file
NO_REGIONS = {"choices", "textarea", "relation", "rating", "number", "datetime", "taxonomy", "pairwise"}


class Shape(BaseModel):
    """The shape of a region, in percent of the image; `x`, `y` is the corner that a rectangle is rotated about, or the
    centre of an ellipse. `rotation` is in degrees, clockwise."""

    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0
    radius_x: float = Field(0, alias="radiusX")
    radius_y: float = Field(0, alias="radiusY")
    rotation: float = 0
    points: list[tuple[float, float]] = []


class Region(NamedTuple):
    """A region that was drawn on an image."""

    names: tuple[str | None, ...]
    box_xyxy: Box | None  # percent of the image; None for one that cannot be read
    texts: tuple[str, ...]  # what annotators wrote about it


class AnnotatedImage(NamedTuple):
    """An image with its regions."""

    image: str
    size: tuple[int, int] | None  # (width, height); None if no region has it
    regions: list[Region]
    unread: list[str]  # reasons why regions could not be read


def read_label_studio(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image, and texts that annotators wrote about a region. The split is
    what the file's name ends with.

    If a task has several annotations, the one marked as ground truth is used, or else the last. A task without any is
    left out, since its content is unknown. Raises `AnnotationError` if the file is not such an export.
    """
    found = [picture for _, picture in _pictures(annotations) if isinstance(picture, AnnotatedImage)]
    classes = sorted({name for picture in found for region in picture.regions for name in region.names if name})
    for where, picture in _pictures(annotations):
        if isinstance(picture, str):
            yield Rejected(picture, where)
            continue
        yield from (Rejected(reason, where) for reason in picture.unread)
        try:
            yield from _records(picture, classes, images, split_of(annotations))
        except RowError as error:
            yield Rejected(str(error), where)


def _records(
    picture: AnnotatedImage, classes: list[str], images: Path | None, split: str
) -> Iterator[Record | Rejected]:
    image = _file_of(picture.image, images)
    size = upright_size(images / image) if images else picture.size
    if size is None:
        raise RowError("no region says the image's size: give --images")
    width, height = size
    things: list[Thing] = []
    written: list[tuple[str, Box]] = []
    for names, shares, texts in picture.regions:
        box = None
        if shares:
            x1, y1, x2, y2 = (share / 100 for share in shares)
            box = (x1 * width, y1 * height, x2 * width, y2 * height)
            written += [(text, box) for text in texts]
        things += [Thing(name, box) for name in names or (None,)]  # without a label it may be of any class
    for number, (text, box) in enumerate(written):
        yield Record(
            id=f"{image}-written-{number}", image=image, width=width, height=height, expression=text, box_xyxy=box,
            split=split, tags={"kind": "written"},
        )  # fmt: skip
    if classes or not written:
        yield from describe(Labelled(image, width, height, things, split), classes, None)


def _pictures(file: Path) -> Iterator[tuple[str, AnnotatedImage | str]]:
    """The place of each task, and its image or the reason why it has none. Raises `AnnotationError` without tasks."""
    where = ""
    for item in json_array(file, "item"):
        where, task = item if not isinstance(item, Rejected) else (item.where, None)
        if not isinstance(task, dict):
            yield where, f"{WRONG_SCHEMA}a task is an object"
        else:
            yield where, _exported(task) if isinstance(task.get("data"), dict) else _minimal(task)
    if not where:
        raise AnnotationError(f"{file} holds no tasks: export the project of Label Studio as JSON or JSON-MIN")


def _exported(task: Mapping[str, Any]) -> AnnotatedImage | str:
    """The image of a task of the JSON export, or the reason why it has none."""
    image = _image_in(task["data"])
    if image is None:
        return "no image in the task's data"
    said = task.get("annotations")
    if not isinstance(said, list) or not all(isinstance(annotation, dict) for annotation in said):
        return f"{WRONG_SCHEMA}annotations"
    done = [annotation for annotation in said if not annotation.get("was_cancelled")]
    if not done:
        return "task without an annotation"
    chosen = next((annotation for annotation in done if annotation.get("ground_truth")), done[-1])
    results = chosen.get("result")
    if not isinstance(results, list):
        return f"{WRONG_SCHEMA}annotations.result"
    return _picture(image, results)


def _minimal(task: Mapping[str, Any]) -> AnnotatedImage | str:
    """The same of the JSON-MIN export: a task has the image and the results under the name of each control tag."""
    image = _image_in(task)
    if image is None:
        return "no image in the task"
    if "annotation_id" not in task:
        return "task without an annotation"
    drawn = [result for value in task.values() if isinstance(value, list) for result in value]
    return _picture(image, [{"value": result} | _parts(result) for result in drawn if isinstance(result, dict)])


def _parts(result: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [key for key in result if key.endswith("labels")]
    return {"type": kinds[0] if kinds else "rectangle"} | {
        key: result.get(key) for key in ("original_width", "original_height")
    }


def _picture(image: str, results: list[Any]) -> AnnotatedImage:
    """Results with the same id belong to one region: its shape, its labels, its texts."""
    grouped: dict[object, list[dict[str, Any]]] = {}
    unread = []
    regions: list[Region] = []
    size = None
    for number, result in enumerate(results):
        if not isinstance(result, dict):
            unread.append(f"{WRONG_SCHEMA}annotations.result")
            regions.append(Region((None,), None, ()))
            continue
        key = result.get("id") if isinstance(result.get("id"), str) else number
        grouped.setdefault(key, []).append(result)
        sides = result.get("original_width"), result.get("original_height")
        if all(isinstance(side, int) and side > 0 for side in sides):
            size = sides
    for parts in grouped.values():
        region = _region(parts, unread)
        if region:
            regions.append(region)
    return AnnotatedImage(image, size, regions, unread)  # type: ignore[arg-type]


def _region(parts: list[dict[str, Any]], unread: list[str]) -> Region | None:
    """A region from its results; None if they are about the whole image."""
    names: list[str | None] = []
    texts: list[str] = []
    boxes: list[Box | None] = []
    for part in parts:
        kind, value = str(part.get("type")), part.get("value")
        said = value if isinstance(value, dict) else {}
        if kind == "textarea":
            written = said.get("text")
            texts += [text for text in (written if isinstance(written, list) else [written]) if isinstance(text, str)]
        if kind in NO_REGIONS:
            continue
        labels = said.get(kind) or said.get("labels") or []
        names += [
            readable_name(label) if isinstance(label, str) else None
            for label in (labels if isinstance(labels, list) else [labels])
        ]
        try:
            boxes.append(_box(kind, Shape.model_validate(value), part))
        except ValidationError as error:
            boxes.append(None)
            unread.append(wrong_schema(error, "").reason)
        except RowError as error:
            boxes.append(None)
            unread.append(str(error))
    if not boxes:
        return None
    distinct = dict.fromkeys(names)
    unread += [NAMELESS] * (None in distinct or not (names or texts))
    return Region(tuple(distinct), None if None in boxes else boxes[0], tuple(texts))


def _box(kind: str, shape: Shape, result: Mapping[str, Any]) -> Box:
    """The box x1, y1, x2, y2 around the shape, in percent. Raises `RowError`."""
    if result.get("image_rotation"):
        raise RowError("the image was turned in Label Studio")
    wide, high = result.get("original_width"), result.get("original_height")
    if shape.rotation and not (isinstance(wide, int) and isinstance(high, int) and wide > 0 and high > 0):
        raise RowError("a turned region without the size of its image")
    aspect = wide / high if wide and high else 1.0  # one percent of the width and of the height differ in length
    cos, sin = math.cos(math.radians(shape.rotation)), math.sin(math.radians(shape.rotation))
    match kind:
        case "rectangle" | "rectanglelabels":
            along = (shape.width * cos, shape.width * sin * aspect)
            down = (-shape.height * sin / aspect, shape.height * cos)
            xs = [shape.x, shape.x + along[0], shape.x + down[0], shape.x + along[0] + down[0]]
            ys = [shape.y, shape.y + along[1], shape.y + down[1], shape.y + along[1] + down[1]]
        case "ellipse" | "ellipselabels":
            x = math.hypot(shape.radius_x * cos, shape.radius_y * sin / aspect)
            y = math.hypot(shape.radius_x * sin * aspect, shape.radius_y * cos)
            xs, ys = [shape.x - x, shape.x + x], [shape.y - y, shape.y + y]
        case "polygon" | "polygonlabels" if shape.points:
            xs, ys = [list(numbers) for numbers in zip(*shape.points, strict=True)]
        case _:
            raise RowError(f"{kind}: a region without a box")
    return min(xs), min(ys), max(xs), max(ys)


def _image_in(data: Mapping[str, Any]) -> str | None:
    """The value under "image", or else the only one that looks like the name of an image file."""
    named = data.get("image")
    if isinstance(named, str) and named:
        return named
    paths = [value for value in data.values() if isinstance(value, str)]
    found = [path for path in paths if urlsplit(path).path.lower().endswith(IMAGE_SUFFIXES)]
    return found[0] if len(found) == 1 else None


def _file_of(image: str, images: Path | None) -> str:
    """The path in the image folder for Label Studio's name of an image: /data/upload/1/0a1b2c3d-a.jpg,
    /data/local-files/?d=photos/a.jpg, or a URL."""
    parts = urlsplit(image)
    local = parse_qs(parts.query).get("d")
    path = local[0] if local else unquote(parts.path)
    name = path.rsplit("/", 1)[-1]
    candidates = [path.lstrip("/"), name, UPLOAD_PREFIX.sub("", name)]
    if not images:
        return candidates[0] if local else candidates[2]
    return next((candidate for candidate in candidates if (images / candidate).is_file()), name)
