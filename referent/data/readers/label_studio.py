"""Label Studio's JSON and JSON-MIN exports. For its COCO, YOLO and Pascal VOC exports, use the readers of those."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, Field, FiniteFloat, PositiveInt, ValidationError

from referent.core.boxes import Box
from referent.core.images import IMAGE_SUFFIXES
from referent.data.image_files import upright_size
from referent.data.readers.detection import NAMELESS, Labelled, Thing, describe, readable_name
from referent.data.readers.rows import json_array, split_of
from referent.data.records import WRONG_SCHEMA, AnnotationError, Record, Rejected, RowError, wrong_schema

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # added to the name of an uploaded file
UNDONE = "task without an annotation"
NO_REGIONS = {"choices", "textarea", "relation", "rating", "number", "datetime", "taxonomy", "pairwise"}


class Rectangle(BaseModel):
    """In percent of the image; `x`, `y` is the corner that it is rotated about, by degrees, clockwise."""

    x: FiniteFloat
    y: FiniteFloat
    width: FiniteFloat
    height: FiniteFloat
    rotation: FiniteFloat = 0

    def xs_ys(self, aspect: float) -> tuple[list[float], list[float]]:
        """The coordinates of its corners; `aspect` is the image's width divided by its height, since one percent of
        them differs in length."""
        cos, sin = math.cos(math.radians(self.rotation)), math.sin(math.radians(self.rotation))
        along = (self.width * cos, self.width * sin * aspect)
        down = (-self.height * sin / aspect, self.height * cos)
        xs = [self.x, self.x + along[0], self.x + down[0], self.x + along[0] + down[0]]
        ys = [self.y, self.y + along[1], self.y + down[1], self.y + along[1] + down[1]]
        return xs, ys


class Ellipse(BaseModel):
    """In percent of the image; `x`, `y` is its centre."""

    x: FiniteFloat
    y: FiniteFloat
    radius_x: FiniteFloat = Field(alias="radiusX")
    radius_y: FiniteFloat = Field(alias="radiusY")
    rotation: FiniteFloat = 0

    def xs_ys(self, aspect: float) -> tuple[list[float], list[float]]:
        """The coordinates of its outermost points."""
        cos, sin = math.cos(math.radians(self.rotation)), math.sin(math.radians(self.rotation))
        x = math.hypot(self.radius_x * cos, self.radius_y * sin / aspect)
        y = math.hypot(self.radius_x * sin * aspect, self.radius_y * cos)
        return [self.x - x, self.x + x], [self.y - y, self.y + y]


class Polygon(BaseModel):
    """Its corners in percent of the image."""

    points: list[tuple[FiniteFloat, FiniteFloat]] = Field(min_length=1)
    rotation: FiniteFloat = 0  # Label Studio turns no polygon

    def xs_ys(self, aspect: float) -> tuple[list[float], list[float]]:
        """The coordinates of its corners."""
        return [x for x, _ in self.points], [y for _, y in self.points]


SHAPES: dict[str, type[Rectangle | Ellipse | Polygon]] = {
    "points": Polygon,
    "radiusX": Ellipse,
    "height": Rectangle,
}  # by the key that only such a shape has


class Canvas(BaseModel):
    """What a result says about its image; some programs write its size as text or as 200.0."""

    original_width: PositiveInt
    original_height: PositiveInt


class Region(NamedTuple):
    """A region that was drawn on an image."""

    names: tuple[str | None, ...]
    box_xyxy: Box | None  # percent of the image; None for one that cannot be read
    texts: tuple[str, ...]  # what annotators wrote about it


class AnnotatedImage(NamedTuple):
    """An image with the regions of all its tasks."""

    where: str  # the first of them
    size: tuple[int, int] | None  # (width, height); None if no region has it
    regions: list[Region]


def read_label_studio(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image, and texts that annotators wrote about a region. The split is
    what the file's name ends with. Several tasks of one image are read as one.

    If a task has several annotations, the one marked as ground truth is used, or else the last. A task without any is
    left out, since its content is unknown. Raises `AnnotationError` if the file is not such an export.
    """
    pictures: dict[str, AnnotatedImage] = {}
    where = ""
    for where, task in json_array(annotations, "item"):
        try:
            data, results = _exported(task)
            image = _image_in(data, results)
        except RowError as error:
            yield Rejected(str(error), where)
            continue
        size, regions, unread = _read_results(results)
        yield from (Rejected(reason, where) for reason in unread)
        earlier = pictures.get(image, AnnotatedImage(where, None, []))
        pictures[image] = AnnotatedImage(earlier.where, size or earlier.size, earlier.regions + regions)
    if not where:
        raise AnnotationError(f"{annotations} holds no tasks: export the project of Label Studio as JSON or JSON-MIN")
    drawn = [region for picture in pictures.values() for region in picture.regions]
    classes = sorted({name for region in drawn for name in region.names if name})
    files = {image: _file_of(image, images) for image in pictures}
    used = Counter(files.values())
    for image, picture in pictures.items():
        try:
            if used[files[image]] > 1:
                raise RowError("several images of Label Studio have the name of this file")
            yield from _records(files[image], picture, classes, images, split_of(annotations))
        except RowError as error:
            yield Rejected(str(error), f"{picture.where}: {files[image]}")


def _records(
    image: str, picture: AnnotatedImage, classes: list[str], images: Path | None, split: str
) -> Iterator[Record | Rejected]:
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


def _exported(task: object) -> tuple[Mapping[str, Any], list[Any]]:
    """The data of a task, which names its image, and the results of its annotation. Raises `RowError`."""
    if not isinstance(task, dict):
        raise RowError(f"{WRONG_SCHEMA}a task is an object")
    data, said = task.get("data"), task.get("annotations")
    if not isinstance(data, dict):
        return task, _minimal(task)
    if not isinstance(said, list) or not all(isinstance(annotation, dict) for annotation in said):
        raise RowError(f"{WRONG_SCHEMA}annotations")
    done = [annotation for annotation in said if not annotation.get("was_cancelled")]
    if not done:
        raise RowError(UNDONE)
    chosen = next((annotation for annotation in done if annotation.get("ground_truth")), done[-1])
    results = chosen.get("result")
    if not isinstance(results, list):
        raise RowError(f"{WRONG_SCHEMA}annotations.result")
    return data, results


def _minimal(task: Mapping[str, Any]) -> list[Any]:
    """The results of a task of JSON-MIN: they stand under the name of each control tag. Results of one shape belong to
    one region, since they have no id. Raises `RowError`."""
    if "annotation_id" not in task:
        raise RowError(UNDONE)
    drawn = [result for value in task.values() if isinstance(value, list) for result in value]
    return [_result(said) for said in drawn if isinstance(said, dict)]


def _result(said: Mapping[str, Any]) -> dict[str, Any]:
    kind = next((key for key in said if key.endswith("labels")), "rectangle")
    shape = {key: value for key, value in said.items() if key != kind}
    return {"type": kind, "id": json.dumps(shape, sort_keys=True), "value": said} | {
        key: said.get(key) for key in Canvas.model_fields
    }


def _read_results(results: list[Any]) -> tuple[tuple[int, int] | None, list[Region], list[str]]:
    """The image's (width, height) if a result says it, the regions, and reasons why some could not be read. Results of
    one id belong to one region: its shape, its labels, its texts."""
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
        size = _size(result) or size
    found = [_region(parts, unread) for parts in grouped.values()]
    return size, [*regions, *(region for region in found if region)], unread


def _size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    """The (width, height) of the image of a result, if it says so."""
    try:
        canvas = Canvas.model_validate(result)
    except ValidationError:
        return None
    return canvas.original_width, canvas.original_height


def _region(parts: list[dict[str, Any]], unread: list[str]) -> Region | None:
    """A region from its results; None if they are about the whole image."""
    names: list[str | None] = []
    texts: list[str] = []
    boxes: list[Box | None] = []
    drawn = [part for part in parts if str(part.get("type")) not in NO_REGIONS]
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
        if kind == "labels" and len(drawn) > 1 and not SHAPES.keys() & said.keys():
            continue  # the shape stands in another result
        try:
            boxes.append(_box(kind, said, part))
        except ValidationError as error:
            boxes.append(None)
            unread.append(wrong_schema(error, "").reason)
        except RowError as error:
            boxes.append(None)
            unread.append(str(error))
    if not drawn:
        return None
    distinct = dict.fromkeys(names)
    unread += [NAMELESS] * (None in distinct or not (names or texts))
    return Region(tuple(distinct), boxes[0] if boxes and None not in boxes else None, tuple(texts))


def _box(kind: str, said: Mapping[str, Any], result: Mapping[str, Any]) -> Box:
    """The box x1, y1, x2, y2 around the shape, in percent. Raises `RowError` and ValidationError."""
    if result.get("image_rotation"):
        raise RowError("the image was turned in Label Studio")
    model = next((SHAPES[key] for key in SHAPES if key in said), None)
    if model is None:
        raise RowError(f"{kind}: a region without a box")
    shape, size = model.model_validate(said), _size(result)
    if shape.rotation and size is None:
        raise RowError("a turned region without the size of its image")
    xs, ys = shape.xs_ys(size[0] / size[1] if size else 1.0)
    return min(xs), min(ys), max(xs), max(ys)


def _image_in(data: Mapping[str, Any], results: list[Any]) -> str:
    """The image that the regions are of: the value under "image", or one that looks like the name of an image file. Of
    several, the one that the results name. Raises `RowError`."""
    drawn = [result for result in results if isinstance(result, dict) and str(result.get("type")) not in NO_REGIONS]
    named = {str(result.get("to_name")) for result in drawn} or {"image"}
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    found = {key: text for key, text in texts.items() if key == "image" or _looks_like_an_image(text)}
    if len(found) > 1:
        found = {key: text for key, text in found.items() if key in named}
    elif not found:
        raise RowError("no image in the task's data")
    if len(named) > 1 or not found:
        raise RowError("task with several images")
    return next(iter(found.values()))


def _looks_like_an_image(text: str) -> bool:
    return urlsplit(text).path.lower().endswith(IMAGE_SUFFIXES)


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
