"""RefCOCO, RefCOCO+ and RefCOCOg as the `refer` tool lays them out: refs(SPLITTER).p beside instances.json."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from referent.core.boxes import Box
from referent.data.pickles import load_pickle
from referent.data.readers.coco import CocoImage, annotation_entries, by_id, category_names
from referent.data.readers.rows import to_records
from referent.data.records import AnnotationError, Record, Rejected, RowError


class Sentence(BaseModel):
    """An expression that one person wrote."""

    sent_id: int
    sent: str


class Ref(BaseModel):
    """An object of an image with its sentences."""

    ref_id: int
    ann_id: int
    image_id: int
    category_id: int
    split: str
    sentences: list[Sentence]


def read_refer(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """A refs file, or a folder with exactly one; every sentence is a record, with the split of its ref."""
    file = refs_file(annotations, "refs(*).p")
    instances = file.parent / "instances.json"
    refs = load_pickle(file)
    if not isinstance(refs, list):
        raise AnnotationError(f"{file.name} holds a {type(refs).__name__}; a list of refs is expected")
    wanted = {ann_id for ref in refs if isinstance(ref, dict) and isinstance(ann_id := ref.get("ann_id"), int)}
    names = yield from category_names(instances)
    sizes = yield from by_id(instances, "images", CocoImage)
    boxes: dict[int | str, Box] = {}
    for annotation in annotation_entries(instances):
        if isinstance(annotation, Rejected):
            yield annotation
        elif annotation.id in wanted:
            boxes[annotation.id] = annotation.box_xyxy

    def convert(ref: Ref, where: str) -> Iterator[Record]:
        image = sizes.get(ref.image_id)
        if ref.ann_id not in boxes or image is None:
            raise RowError("no annotation or image for this ref")
        for sentence in ref.sentences:
            yield Record(
                id=str(sentence.sent_id), image=image.file_name, width=image.width, height=image.height,
                expression=sentence.sent, box_xyxy=boxes[ref.ann_id], split=ref.split,
                tags={"class": names.get(ref.category_id, str(ref.category_id))},
            )  # fmt: skip

    yield from to_records(((f"{file.name}:{number}", ref) for number, ref in enumerate(refs, 1)), Ref, convert)


def refs_file(annotations: Path, pattern: str) -> Path:
    """The file itself, or the only file of that pattern in the folder. Raises `AnnotationError`."""
    if not annotations.is_dir():
        return annotations
    found = sorted(annotations.glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AnnotationError(f"{annotations} holds {len(found)} refs files ({names}): name the one to read")
    return found[0]
