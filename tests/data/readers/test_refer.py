import json
import pickle
from pathlib import Path

import pytest

from referent.data.readers import AnnotationError, read
from referent.data.records import Rejected


def ref(number: int, ann_id: int, split: str, *said: str) -> dict:
    """As refs(unc).p has it, every field of it."""
    sentences = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * number + i, "sent": text}
        for i, text in enumerate(said)
    ]
    return {
        "sent_ids": [s["sent_id"] for s in sentences], "file_name": f"COCO_train2014_000000000007_{number}.jpg",
        "ann_id": ann_id, "ref_id": number, "image_id": 7, "split": split, "sentences": sentences, "category_id": 18,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    refs = [ref(1, 100, "train", "the dog", "left dog"), ref(2, 101, "testA", "right dog"), ref(3, 999, "val", "cat")]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    image = {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 200, "height": 100, "license": 1}
    annotation = {"image_id": 7, "category_id": 18, "iscrowd": 0, "area": 9.5, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    instances = {
        "info": {"year": 2014},
        "images": [image],
        "licenses": [],
        "annotations": [annotation | {"id": 100, "bbox": [10.5, 20, 30, 40]},
                        annotation | {"id": 101, "bbox": [110, 20, 30, 40]}],
        "categories": [{"supercategory": "animal", "id": 18, "name": "dog"}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


def test_every_sentence_is_a_record_of_the_split_of_its_ref(folder: Path) -> None:
    first, second, third, missing = read("refer", folder)
    assert [r.expression for r in (first, second, third)] == ["the dog", "left dog", "right dog"]
    assert [r.split for r in (first, second, third)] == ["train", "train", "testA"]
    assert [r.id for r in (first, second, third)] == ["10", "11", "20"]
    assert missing == Rejected("no annotation or image for this ref", "refs(unc).p:3")


def test_box_and_image_are_those_of_instances_json(folder: Path) -> None:
    record = next(iter(read("refer", folder)))
    assert record.box_xyxy == (10.5, 20, 40.5, 60)
    assert (record.image, record.width, record.height) == ("COCO_train2014_000000000007.jpg", 200, 100)
    assert record.tags == {"class": "dog"}


def test_with_several_refs_files_one_is_to_be_named(folder: Path) -> None:
    (folder / "refs(google).p").write_bytes(pickle.dumps([ref(1, 100, "train", "a dog")]))
    with pytest.raises(AnnotationError, match=r"2 refs files \(refs\(google\)\.p, refs\(unc\)\.p\): name the one"):
        list(read("refer", folder))
    assert [item.expression for item in read("refer", folder / "refs(google).p")] == ["a dog"]
