"""Writes what a batch found as a table, as YOLO labels, and as pictures; `referent.client.coco` has COCO's layout.

Results of one image are put together, in whatever order they come. Errors are only in the table.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from referent.client.batch import BatchResult, without_repeats
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
OURS = "# Written by referent batch."
LONGEST_NAME = 60  # letters of a step of a URL's path: four bytes each, and a file's name has 255
MOST_OF_A_JPEG = 65500  # pixels a side
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
    2. Returns the number of files. Raises OSError, and ValueError if two images would share a file, or the folder has
    another data set.
    """
    settings = folder / "data.yaml"
    if settings.exists() and not settings.read_bytes().startswith(OURS.encode()):
        raise ValueError(f"{settings} is not of referent batch, and its labels would be lost: name another folder")
    images = images_of(results)
    names = list(dict.fromkeys(answer.expression for image in images for answer in image.answers))
    classes = {name: number for number, name in enumerate(names)}
    has_points = any(found.point_xy for image in images for answer in image.answers for found in answer.referents)
    files = _homes(images, lambda image: folder / "labels" / image.place.with_suffix(".txt"))
    for file, image in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            " ".join([str(classes[answer.expression]), *_shares(found, image.size, has_points)])
            for answer in image.answers
            for found in answer.referents
        ]
        with atomic(file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    shape = ["kpt_shape: [1, 3]"] if has_points else []
    quoted = [f"  {number}: {_quoted(name)}" for name, number in classes.items()]
    content = [OURS, "path: .", "train: images", "val: images", *shape, "names:" if names else "names: []", *quoted]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(settings) as temporary:
        temporary.write_text("\n".join([*content, ""]), encoding="utf-8")
    return len(images)


def _quoted(name: str) -> str:
    """As YAML, for which JSON's strings are valid but for line breaks and letters that JSON escapes as two."""
    return json.dumps(" ".join(name.split()), ensure_ascii=False)


def _homes(images: Sequence[AnsweredImage], home: Callable[[AnsweredImage], Path]) -> dict[Path, AnsweredImage]:
    """The file of each image. Raises ValueError if two images would share one."""
    files: dict[Path, AnsweredImage] = {}
    for image in images:
        if other := files.get(file := home(image)):
            raise ValueError(f"{other.image} and {image.image} would share the file {file}: rename one")
        files[file] = image
    return files


def _shares(found: Referent, size: ImageSize, has_points: bool) -> list[str]:
    x, y = found.point_xy or (0.0, 0.0)
    x1, y1, x2, y2 = found.box_xyxy or (x, y, x, y)
    box = [(x1 + x2) / 2 / size.width, (y1 + y2) / 2 / size.height, (x2 - x1) / size.width, (y2 - y1) / size.height]
    point = [x / size.width, y / size.height, 2 if found.point_xy else 0] if has_points else []
    return [f"{share:.6g}" for share in [*box, *point]]


def write_pictures(results: Iterable[BatchResult], folder: Path) -> int:
    """A JPEG of each image with its answers drawn. Images given by URL are left out: only the service has them.

    Returns the number of pictures. Raises ValueError before anything is written if two images would share a file or an
    image would be replaced; if some images can't be read any more or drawn, the others are written before.
    """
    files = _homes([image for image in images_of(results) if not is_url(image.image)], partial(_drawn_file, folder))
    for file, image in files.items():
        if file.exists() and any(file.samefile(each.image) for each in files.values() if os.path.exists(each.image)):
            raise ValueError(f"the picture of {image.image} would replace the image {file}: name another folder")
    failed = []
    for file, image in files.items():
        try:
            picture = picture_of(image.image)
            if picture.size != (image.size.width, image.size.height):
                sizes = (f"{width}x{height}" for width, height in ((image.size.width, image.size.height), picture.size))
                raise ValueError(f"it had {' pixels, and now '.join(sizes)}: ask about it again")
            drawn = draw(picture, image.answers)
            if max(drawn.size) > MOST_OF_A_JPEG:
                raise ValueError(f"a JPEG has at most {MOST_OF_A_JPEG} pixels a side")
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic(file) as temporary:
                drawn.save(temporary, "JPEG", quality=90)
        except (OSError, ValueError) as error:
            failed.append(f"{image.image}: {error}")
    if failed:
        raise ValueError(f"{len(files) - len(failed)} pictures are in {folder}, {len(failed)} are not: {failed[0]}")
    return len(files)


def _drawn_file(folder: Path, image: AnsweredImage) -> Path:
    is_jpeg = image.place.suffix.lower() in (".jpg", ".jpeg")
    return folder / (image.place if is_jpeg else image.place.with_name(f"{image.place.name}.jpg"))


def images_of(results: Iterable[BatchResult]) -> list[AnsweredImage]:
    """The images that were answered, in the order of their first result."""
    found: dict[str, tuple[ImageSize, list[Answer]]] = {}
    for result in without_repeats(results):
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
    place = Path(parts.hostname or "", *(step[:LONGEST_NAME] for step in steps))
    suffix = place.suffix if place.suffix.lower() in IMAGE_SUFFIXES else ""
    named = hashlib.sha256(image.encode()).hexdigest()[:8]  # what the path does not tell
    is_told = not parts.query and all(len(step) <= LONGEST_NAME for step in steps)
    stem = place.name.removesuffix(suffix) + ("" if is_told else f"-{named}")
    return place.with_name(f"{stem}{suffix or '.jpg'}")
