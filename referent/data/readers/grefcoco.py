"""gRefCOCO: expressions that mean any number of a COCO image's objects; grefs(SPLITTER).json beside instances.json."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator

from referent.core.boxes import Box
from referent.data.readers.coco import CocoId, CocoImage, annotation_entries, by_id, category_names
from referent.data.readers.refer import Sentence, refs_file
from referent.data.readers.rows import json_array, to_records
from referent.data.records import Record, Rejected, RowError

NO_TARGET = -1  # as the only annotation of a ref


def referents(boxes: list[Box]) -> dict[str, object]:
    """The fields of a record for the boxes of all objects that an expression means: none, one or several."""
    if len(boxes) > 1:
        return {"boxes_xyxy": tuple(boxes)}
    return {"box_xyxy": boxes[0]} if boxes else {}


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


class GeneralRef(BaseModel):
    """The objects of an image that some sentences mean; a single annotation may be written without a list."""

    ref_id: CocoId
    ann_id: Annotated[list[CocoId], BeforeValidator(_listed)]
    image_id: CocoId
    split: str
    sentences: list[Sentence]
    no_target: bool | None = None


def read_grefcoco(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """A grefs file, or a folder with exactly one; every sentence is a record, with the split of its ref."""
    file = refs_file(annotations, "grefs(*).json")
    instances = file.parent / "instances.json"
    names = yield from category_names(instances)
    sizes = yield from by_id(instances, "images", CocoImage)
    objects: dict[int | str, tuple[int | str, int | str, Box]] = {}  # image, category, box
    for entry in annotation_entries(instances):
        if isinstance(entry, Rejected):
            yield entry
        else:
            objects[entry.id] = (entry.image_id, entry.category_id, entry.box_xyxy)

    def convert(ref: GeneralRef, where: str) -> Iterator[Record]:
        chosen = list(dict.fromkeys(ref.ann_id))
        none = chosen in ([NO_TARGET], [])
        image = sizes.get(ref.image_id)
        if image is None or not (none or all(ann_id in objects for ann_id in chosen)):
            raise RowError("no annotation or image for this ref")
        if not chosen and not ref.no_target:
            raise RowError("an empty ann_id without no_target")
        if ref.no_target is not None and ref.no_target != none:
            raise RowError("no_target and ann_id contradict each other")
        found = [] if none else [objects[ann_id] for ann_id in chosen]
        if any(image_id != ref.image_id for image_id, _, _ in found):
            raise RowError("annotation of another image")
        classes = {names.get(category, str(category)) for _, category, _ in found}
        tags = {"class": classes.pop()} if len(classes) == 1 else {}
        for sentence in ref.sentences:
            yield Record.model_validate(
                {
                    "id": str(sentence.sent_id), "image": image.file_name, "width": image.width, "height": image.height,
                    "expression": sentence.sent, "split": ref.split,
                    "tags": tags,
                }
                | referents([box for _, _, box in found])
            )  # fmt: skip

    yield from to_records(json_array(file, "item"), GeneralRef, convert)
