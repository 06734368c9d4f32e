import json
from collections.abc import Callable
from pathlib import Path

import pytest

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected

BOXES = {100: (10.5, 20, 40.5, 60), 101: (110, 20, 140, 60), 102: (150, 20, 190, 90)}
Write = Callable[..., Path]


def gref(number: int, ann_id: object, *said: str, **fields: object) -> dict:
    """As grefs(unc).json has it."""
    sentences = [
        {"tokens": text.split(), "raw": text, "sent_id": 10 * number + i, "sent": text, "exist": True}
        for i, text in enumerate(said)
    ]
    return {
        "image_id": 7, "split": "train", "sentences": sentences, "file_name": "COCO_train2014_000000000007_3.jpg",
        "category_id": [18], "ann_id": ann_id, "sent_ids": [s["sent_id"] for s in sentences], "ref_id": number,
        "no_target": ann_id == [-1],
    } | fields  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    image = {"file_name": "COCO_train2014_000000000007.jpg", "width": 200, "height": 100}
    annotation = {"image_id": 7, "iscrowd": 0, "area": 9.5, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    instances = {
        "images": [image | {"id": 7}, image | {"id": 8}],
        "annotations": [
            annotation | {"id": 100, "bbox": [10.5, 20, 30, 40], "category_id": 18},
            annotation | {"id": 101, "bbox": [110, 20, 30, 40], "category_id": 18},
            annotation | {"id": 102, "bbox": [150, 20, 40, 70], "category_id": 17},
            annotation | {"id": 200, "bbox": [150, 20, 40, 70], "category_id": 17, "image_id": 8},
        ],
        "categories": [{"supercategory": "animal", "id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    }

    def folder(*refs: dict) -> Path:
        (tmp_path / "grefs(unc).json").write_text(json.dumps(refs))
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        return tmp_path

    return folder


def test_an_expression_means_several_objects_one_or_none(write: Write) -> None:
    several, one, bare, none, other = read(
        "grefcoco",
        write(
            gref(1, [100, 102], "dog and cat", split="val"), gref(2, [101], "right dog"), gref(3, 101, "dog"),
            gref(4, [-1], "horses", "the horse", category_id=[-1]),
        ),
    )  # fmt: skip
    assert several.boxes_xyxy == (BOXES[100], BOXES[102])
    assert (several.box_xyxy, several.split, several.tags) == (None, "val", {})
    assert one.box_xyxy == bare.box_xyxy == BOXES[101]
    assert (one.boxes_xyxy, one.tags) == (None, {"class": "dog"})
    assert [(record.present, record.boxes) for record in (none, other)] == [(False, ()), (False, ())]
    assert (other.id, other.expression, other.image) == ("41", "the horse", "COCO_train2014_000000000007.jpg")


def test_every_sentence_has_the_class(write: Write) -> None:
    records = list(read("grefcoco", write(gref(1, [100, 101], "both dogs", "the two dogs", "dogs"))))
    assert [record.tags for record in records] == [{"class": "dog"}] * 3


@pytest.mark.parametrize("ann_id", [-1, [-1]])
def test_no_target_is_told_in_several_ways(write: Write, ann_id: object) -> None:
    ref = gref(1, ann_id, "a horse", no_target=True)
    (record,) = read("grefcoco", write(ref))
    assert not record.present
    assert list(read("grefcoco", write(ref | {"ann_id": []}))) == [record]
    del ref["no_target"]
    assert list(read("grefcoco", write(ref))) == [record]


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        (gref(1, [100, 999], "dogs"), "no annotation or image for this ref"),
        (gref(1, [100, -1], "dogs"), "no annotation or image for this ref"),
        (gref(1, [100], "dogs", image_id=9), "no annotation or image for this ref"),
        (gref(1, [100, 200], "dogs"), "annotation of another image"),
        (gref(1, [100], "dogs", no_target=True), "no_target and ann_id contradict each other"),
        (gref(1, [-1], "dogs", no_target=False), "no_target and ann_id contradict each other"),
        (gref(1, None, "dogs", no_target=False), "wrong schema: ann_id"),
        (gref(1, [], "dogs", no_target=None), "an empty ann_id without no_target"),
        (gref(1, [100], " "), "empty expression"),
    ],
)
def test_what_is_unfit_is_counted_and_the_rest_read(write: Write, ref: dict, reason: str) -> None:
    rejected, record = read("grefcoco", write(ref, gref(2, [101], "right dog")))
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith(reason)
    assert isinstance(record, Record)


def test_an_object_that_is_named_twice_is_one(write: Write) -> None:
    (record,) = read("grefcoco", write(gref(1, [101, 100, 101, "100"], "dogs")))
    assert record.boxes_xyxy == (BOXES[101], BOXES[100])


def test_the_folder_or_the_file_may_be_given(write: Write) -> None:
    folder = write(gref(1, [100], "dog"))
    assert list(read("grefcoco", folder / "grefs(unc).json")) == list(read("grefcoco", folder))
    (folder / "grefs(x).json").write_text("[]")
    with pytest.raises(AnnotationError, match="2 refs files"):
        list(read("grefcoco", folder))


def test_a_file_that_is_cut_off_stops(write: Write) -> None:
    file = write(gref(1, [100], "dog"), gref(2, [101], "right dog")) / "grefs(unc).json"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(AnnotationError, match="is the file whole"):
        list(read("grefcoco", file))
