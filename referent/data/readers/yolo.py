"""YOLO data sets, as Ultralytics, Roboflow, CVAT and Label Studio write them: a folder of images with a text file of
labels for each, and the names of the classes in one file."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from referent.core.boxes import Box
from referent.core.files import files_below
from referent.core.images import IMAGE_SUFFIXES
from referent.core.text_files import has_end, read_lines
from referent.data.image_files import upright_size
from referent.data.readers.detection import NAMELESS, Labelled, Thing, describe, readable_name
from referent.data.readers.rows import need_images
from referent.data.records import WRONG_SCHEMA, AnnotationError, Record, Rejected, RowError

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")  # a name on each line
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABEL = f"{WRONG_SCHEMA}a label is class, then centre x, centre y, width, height or the corners of a polygon, in 0..1"


class YoloSet(NamedTuple):
    """The settings of a whole data set."""

    root: Path
    names: Mapping[int, str | None]  # None for a name that cannot be read
    keypoints: int  # how many numbers follow the box of an object
    splits: Mapping[Path, str]  # of images and folders


def read_yolo(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """Expressions generated from the labels of each image. `annotations` is the YAML file of the data set, or the
    folder that contains it or a file of names; image paths in the records are relative to `images`.

    An image without a label file is left out, since its content is unknown. An empty file says that none of the classes
    is there. Raises `AnnotationError` if the classes have no names or no image is found.
    """
    folder = need_images(images, "labels of YOLO are shares of each image")
    data = _data_set(annotations)
    pictures = [file for file in files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        raise AnnotationError(f"{folder} holds no images: give the folder of the data set as --images")
    for number, name in data.names.items():
        if name is None:
            yield Rejected(NAMELESS, f"{annotations.name}: class {number}")
    classes = sorted({name for name in data.names.values() if name is not None})
    used = set()
    for picture in pictures:
        where = str(picture.relative_to(folder))
        labels = _labels_of(picture, folder, data.root)
        if labels is None:
            yield Rejected("image without a file of labels", where)
            continue
        used.add(labels.resolve())
        try:
            width, height = upright_size(picture)
            things: list[Thing] = []
            for item in _things(labels, data, width, height):
                if isinstance(item, Rejected):
                    yield item
                else:
                    things.append(item)
            split = _split_of(picture, folder, data)
            yield from describe(Labelled(where, width, height, things, split), classes, None)
        except RowError as error:
            yield Rejected(str(error), where)
    for file in files_below(data.root):
        if (
            "labels" in file.relative_to(data.root).parts
            and file.suffix == ".txt"
            and file.name not in NAME_FILES
            and file.resolve() not in used
        ):
            yield Rejected(f"labels without an image ({', '.join(IMAGE_SUFFIXES)})", file.name)


def _things(labels: Path, data: YoloSet, width: int, height: int) -> Iterator[Thing | Rejected]:
    """The object of each line. One that cannot be read is yielded as `Rejected`, and as a `Thing` without a box."""
    for line, text in enumerate(read_lines(labels, "replace"), 1):
        if not text.strip():
            continue
        where = f"{labels.name}:{line}"
        label, *numbers = text.split()
        name, box = None, None
        try:
            name = data.names[_class_of(label)]
            box = _box([float(number) for number in numbers], data.keypoints, width, height)
        except KeyError:
            yield Rejected("unknown class", where)
        except ValueError:
            if not has_end(text):
                raise RowError("file of labels is cut off, or its last line is wrong") from None
            yield Rejected(LABEL, where)
        yield Thing(name, box)


def _class_of(label: str) -> int:
    """The class number; some programs write 3.0. Raises ValueError."""
    number = float(label)
    if not number.is_integer():  # nor infinity
        raise ValueError(f"{label} is the number of no class")
    return int(number)


def _box(numbers: list[float], keypoints: int, width: int, height: int) -> Box:
    """xyxy in pixels. Raises ValueError."""
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    if len(numbers) == 4 + keypoints:
        x, y, w, h = numbers[:4]
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    if keypoints or len(numbers) < 6 or len(numbers) % 2:
        raise ValueError("neither a box nor a polygon")
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height


def _labels_of(picture: Path, folder: Path, root: Path) -> Path | None:
    """The label file: labels/ replaces images/ in the path, in the image folder or data set; or beside the image."""
    parts = picture.relative_to(folder).with_suffix(".txt").parts
    turned = [("labels" if part == "images" else part) for part in parts]
    candidates = [folder.joinpath(*turned), root.joinpath(*turned), root.joinpath("labels", *parts)]
    if folder.name == "images":
        candidates.append(folder.parent.joinpath("labels", *parts))
    candidates.append(picture.with_suffix(".txt"))
    return next((file for file in candidates if file.is_file()), None)


def _split_of(picture: Path, folder: Path, data: YoloSet) -> str:
    """The split in the YAML file, or else of the nearest folder of the data set that has a split's name."""
    here = _absolute(picture)
    for place in (here, *here.parents, picture.resolve(), *picture.resolve().parents):
        if place in data.splits:
            return data.splits[place]
    root = _absolute(data.root)
    folders = here.relative_to(root if here.is_relative_to(root) else _absolute(folder)).parent.parts
    return next((SPLITS[name.lower()] for name in reversed(folders) if name.lower() in SPLITS), "train")


def _absolute(path: Path) -> Path:
    """The path without `..`. Links stay, since an image may be a link into a folder of all images."""
    return Path(os.path.abspath(path))


def _data_set(annotations: Path) -> YoloSet:
    if annotations.is_file() and annotations.suffix not in (".yaml", ".yml"):
        raise AnnotationError(f"{annotations} is not a YAML file: give data.yaml, or the folder of the data set")
    root = annotations if annotations.is_dir() else annotations.parent
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if annotations.is_dir() else [annotations]
    for file in files:
        said = _yaml(file)
        if isinstance(said, dict) and "names" in said:
            splits = dict(_splits(said, root))
            places = {path.resolve(): splits[path] for path in splits} | {
                _absolute(path): splits[path] for path in splits
            }
            return YoloSet(root, _names(said["names"], file), _keypoints(said, file), places)
        if file == annotations:
            raise AnnotationError(f"{file} has no `names`: the names of the classes, in order or by number")
    for file in (root / name for name in NAME_FILES):
        if file.is_file():
            lines = "".join(read_lines(file, "replace")).rstrip().splitlines()
            return YoloSet(root, {number: readable_name(line) for number, line in enumerate(lines)}, 0, {})
    raise AnnotationError(
        f"{annotations} has no names of classes: a YAML file with `names`, or one of {', '.join(NAME_FILES)}"
    )


class _TextLoader(yaml.BaseLoader):
    """YAML without types, since `yes`, `007` and dates may be names of classes. A key may occur only once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"key {twice} occurs twice: keep one", node.start_mark)
        return found


def _yaml(file: Path) -> Any:
    text = "".join(read_lines(file))
    try:
        return yaml.load(text, _TextLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise AnnotationError(f"{file} is not YAML: {' '.join(str(error).split())}") from error


def _names(said: object, file: Path) -> dict[int, str | None]:
    numbered = dict(enumerate(said)) if isinstance(said, list) else said
    try:
        names = {int(number): name for number, name in numbered.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        raise AnnotationError(f"{file}: `names` is neither a list nor numbers with names") from None
    return {number: readable_name(name) if isinstance(name, str) else None for number, name in names.items()}


def _keypoints(said: Mapping[str, Any], file: Path) -> int:
    shape = said.get("kpt_shape")
    if shape is None:
        return 0
    try:
        count, dimensions = (int(number) for number in shape)
    except (TypeError, ValueError):
        raise AnnotationError(f"{file}: `kpt_shape` is not [points, numbers of a point]") from None
    return count * dimensions


def _splits(said: Mapping[str, Any], root: Path) -> Iterator[tuple[Path, str]]:
    """The folders or lists of images that train, val and test name. Paths of other machines are skipped."""
    bases = [root / str(said.get("path") or ""), root]
    for split in ("train", "val", "test"):
        entries = said.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            near = str(entry).removeprefix("../")  # Roboflow's paths start at a folder below
            found = (base / path for base in bases for path in (str(entry), near) if (base / path).exists())
            if place := next(found, None):
                if place.is_dir():
                    yield place, split
                else:
                    lines = (line.strip() for line in read_lines(place, "replace"))
                    yield from ((place.parent / line, split) for line in lines if line)
