"""Writes what a batch found as a table, as YOLO labels, and as pictures; `referent.client.coco` has COCO's layout.

Results of one image are put together, in whatever order they come. Errors are only in the table.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from referent.client.batch import BatchResult
from referent.client.drawing import draw
from referent.core.answers import Answer, Referent
from referent.core.api import ImageSize
from referent.core.files import atomic
from referent.core.images import IMAGE_SUFFIXES
from referent.core.sources import is_url, picture_of

COLUMNS = (
    "image", "width", "height", "model", "expression", "referent", "present", "score", "x1", "y1", "x2", "y2", "x", "y",
    "error",
)  # fmt: skip
YES_OR_NO = {True: "yes", False: "no", None: ""}


class AnsweredImage(NamedTuple):
    """An image with all answers about it. `place` is its path relative to the folder that all images have in common."""

    image: str
    place: Path
    size: ImageSize
    answers: list[Answer]


def write_csv(results: Iterable[BatchResult], file: Path) -> int:
    """A row for each referent, in pixels. An expression without referents has one row, with `present` and its score; an
    image that failed has one row, with the error. Returns the number of rows. Raises OSError."""
    count = 0
    with atomic(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines)
        table.writerow(COLUMNS)
        for result in results:
            for row in _rows(result):
                table.writerow(["" if cell is None else cell for cell in row])
                count += 1
    return count


def _rows(result: BatchResult) -> Iterator[list[object]]:
    if result.answer is None:
        yield [result.image, *[None] * (len(COLUMNS) - 2), result.error]
        return
    size, model = result.answer.image, result.answer.model
    for answer in result.answer.results:
        start = [result.image, size.width, size.height, model, answer.expression]
        for number, found in enumerate(answer.referents, 1):
            box, point = found.box_xyxy or (None,) * 4, found.point_xy or (None,) * 2
            yield [*start, number, YES_OR_NO[found.present], found.score, *box, *point, None]
        if not answer.referents:
            yield [*start, None, YES_OR_NO[answer.present], answer.score, *[None] * 7]


def write_yolo(results: Iterable[BatchResult], folder: Path) -> int:
    """data.yaml with the expressions as classes, and labels/ with a file for each image, empty if nothing was found.
    The images themselves have to be put into images/ beside labels/, under the same paths.

    A line is class, centre x, centre y, width, height in 0..1 of the image; a point is a box without size, then x, y,
    2. Returns the number of files. Raises OSError, and ValueError if two images would share a file.
    """
    images = images_of(results)
    names = list(dict.fromkeys(answer.expression for image in images for answer in image.answers))
    classes = {name: number for number, name in enumerate(names)}
    has_points = any(found.point_xy for image in images for answer in image.answers for found in answer.referents)
    homes: dict[Path, str] = {}
    for image in images:
        file = folder / "labels" / image.place.with_suffix(".txt")
        if homes.setdefault(file, image.image) != image.image:
            raise ValueError(f"{homes[file]} and {image.image} would share the labels {file}: rename one")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            " ".join([str(classes[answer.expression]), *_shares(found, image.size, has_points)])
            for answer in image.answers
            for found in answer.referents
        ]
        with atomic(file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    shape = ["kpt_shape: [1, 3]"] if has_points else []
    quoted = [f"  {number}: {json.dumps(name)}" for number, name in enumerate(names)]  # JSON strings are valid YAML
    content = ["path: .", "train: images", "val: images", *shape, "names:" if names else "names: []", *quoted]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "data.yaml") as temporary:
        temporary.write_text("\n".join([*content, ""]), encoding="utf-8")
    return len(images)


def _shares(found: Referent, size: ImageSize, has_points: bool) -> list[str]:
    x, y = found.point_xy or (0.0, 0.0)
    x1, y1, x2, y2 = found.box_xyxy or (x, y, x, y)
    box = [(x1 + x2) / 2 / size.width, (y1 + y2) / 2 / size.height, (x2 - x1) / size.width, (y2 - y1) / size.height]
    point = [x / size.width, y / size.height, 2 if found.point_xy else 0] if has_points else []
    return [f"{share:.6g}" for share in [*box, *point]]


def write_pictures(results: Iterable[BatchResult], folder: Path) -> int:
    """A JPEG of each image with its answers drawn. Images given by URL are left out: only the service has them.

    Returns the number of pictures. Raises OSError; if some images can't be read any more, writes the others and then
    raises ValueError.
    """
    count, unread = 0, []
    for image in images_of(results):
        if is_url(image.image):
            continue
        is_jpeg = image.place.suffix.lower() in (".jpg", ".jpeg")
        file = folder / (image.place if is_jpeg else image.place.with_name(f"{image.place.name}.jpg"))
        try:
            picture = picture_of(image.image)
        except (OSError, ValueError) as error:
            unread.append(str(error))
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            draw(picture, image.answers).save(temporary, "JPEG", quality=90)
        count += 1
    if unread:
        raise ValueError(f"{count} pictures are in {folder}, {len(unread)} images can't be read any more: {unread[0]}")
    return count


def images_of(results: Iterable[BatchResult]) -> list[AnsweredImage]:
    """The images that were answered, in the order of their first result."""
    found: dict[str, tuple[ImageSize, list[Answer]]] = {}
    for result in results:
        if result.answer:
            found.setdefault(result.image, (result.answer.image, []))[1].extend(result.answer.results)
    files = [image for image in found if not is_url(image)]
    common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]) if files else ""
    return [AnsweredImage(image, _place(image, common), size, answers) for image, (size, answers) in found.items()]


def _place(image: str, common: str) -> Path:
    if not is_url(image):
        return Path(os.path.relpath(os.path.abspath(image), common))
    parts = urlsplit(image)
    steps = [step for step in unquote(parts.path).split("/") if step not in ("", ".", "..")]
    place = Path(parts.hostname or "", *steps)
    return place if place.suffix.lower() in IMAGE_SUFFIXES else place.with_name(f"{place.name}.jpg")
