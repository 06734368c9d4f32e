"""PASCAL VOC detection files: a folder of XML files, one for each image."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from pydantic import BaseModel, Field, ValidationError

from referent.core.text_files import read_lines
from referent.data.readers.detection import NAMELESS, Labelled, Thing, describe_each, readable_name
from referent.data.readers.rows import AnnotationRows, to_records
from referent.data.records import WRONG_SCHEMA, AnnotationError, Record, Rejected, wrong_schema

SPLITS = ("train", "val", "test")
FIELDS = {"filename": "filename", "width": "size/width", "height": "size/height"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(BaseModel):
    """Corners are the outermost pixels, counted from 1."""

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class VocImage(BaseModel):
    """An XML file."""

    filename: str
    width: int
    height: int
    objects: list[dict[str, str | None]] = Field(default_factory=list, description="each read by itself")


def read_voc(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """The folder of XML files, or the one above it with `Annotations` and, for the splits, `ImageSets/Main`."""
    folder = annotations / "Annotations" if (annotations / "Annotations").is_dir() else annotations
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".xml") if folder.is_dir() else []
    if not files:
        raise AnnotationError(f"{annotations} holds no XML files of annotations")
    splits: dict[str, str] = {}
    for split in SPLITS:
        listing = folder.parent / "ImageSets" / "Main" / f"{split}.txt"
        if listing.exists():
            splits |= {line.strip(): split for line in read_lines(listing, "replace")}

    def convert(image: VocImage, where: str) -> Iterator[Labelled | Rejected]:
        things = []
        for number, fields in enumerate(image.objects, 1):
            name, box = readable_name(fields["name"]), None
            try:
                found = VocObject.model_validate(fields)
                box = (found.xmin - 1, found.ymin - 1, found.xmax, found.ymax)
                if name is None:
                    yield Rejected(NAMELESS, f"{where}: object {number}")
            except ValidationError as error:
                yield wrong_schema(error, f"{where}: object {number}")
            things.append(Thing(name, box))
        split = splits.get(Path(where).stem, "train")
        yield Labelled(image.filename, image.width, image.height, things, split)

    labelled: list[Labelled | Rejected] = list(to_records(_rows(files), VocImage, convert))
    named = {thing.name for item in labelled if isinstance(item, Labelled) for thing in item.things}
    return describe_each(labelled, sorted(name for name in named if name), images)


def _rows(files: Iterable[Path]) -> AnnotationRows:
    for file in files:
        root = _parse(file)
        if root is None:
            yield Rejected(f"{WRONG_SCHEMA}xml", file.name)
            continue
        fields = {key: root.findtext(path) for key, path in FIELDS.items()}
        objects = [
            {"name": thing.findtext("name")} | {key: thing.findtext(f"bndbox/{key}") for key in CORNERS}
            for thing in root.iterfind("object")
        ]
        yield file.name, fields | {"objects": objects}


def _parse(file: Path) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError):  # also an encoding that does not exist
        return None
