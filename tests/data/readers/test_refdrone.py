import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected

NONE = {"area": -1, "iscrowd": -1, "category_id": -1, "bbox": [0, 0, 0, 0], "empty": True, "original_id": -1}
Write = Callable[..., Path]


def thing(image_id: int, left: float, **fields: object) -> dict:
    """As the published file has it: category ids are texts there."""
    return {
        "area": 600.0, "iscrowd": 0, "image_id": image_id, "category_id": "3", "id": 0, "empty": False,
        "bbox": [left, 10.0, 20.0, 30.0], "original_id": -1, "tokens_positive": [[0, 3]],
    } | fields  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(captions: list[str], annotations: list[object], name: str = "RefDrone_test_mdetr.json") -> Path:
        images = [
            {"file_name": "a.jpg", "width": 200, "height": 100, "id": number, "original_id": -1, "caption": caption,
             "dataset_name": "RefDrone", "tokens_negative": [[0, 3]]}
            for number, caption in enumerate(captions)
        ]  # fmt: skip
        categories = [{"supercategory": "vehicle", "id": 3, "name": "car"}, {"id": 4, "name": "van"}]
        content = {"info": "RefDrone", "images": images, "annotations": annotations, "categories": categories}
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return file


def test_every_caption_is_a_record_of_what_it_means(write: Write) -> None:
    annotations = [
        thing(0, 10),
        thing(1, 50),
        thing(0, 90),
        NONE | {"image_id": 2},
        thing(3, 1),
        thing(3, 9, category_id="4"),
    ]
    several, one, none, mixed = read(
        "refdrone", write(["The cars.", "The car.", "The buses.", "Cars and vans."], annotations)
    )
    assert several.boxes_xyxy == ((10, 10, 30, 40), (90, 10, 110, 40))
    assert (one.box_xyxy, one.boxes_xyxy) == ((50, 10, 70, 40), None)
    assert not none.present
    assert [record.tags for record in (several, one, none, mixed)] == [{"class": "car"}, {"class": "car"}, {}, {}]
    assert (several.id, several.image, several.split) == ("0", "a.jpg", "test")


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ([], "no annotation for this expression"),
        ([thing(0, 10), NONE | {"image_id": 0}], "an empty annotation beside others"),
        ([thing(0, 10), thing(0, 10, bbox=[1, 2, 3])], "an annotation of this expression can't be read"),
        ([thing(0, 10), thing(0, 10, bbox=None)], "an annotation of this expression can't be read"),
        ([thing(0, 10), thing(0, 50, bbox=[50, 10, 0, 10])], "box has no area"),
        ([thing(0, 10), thing(0, 195)], "box outside the image"),
    ],
)
def test_an_expression_whose_objects_are_not_all_known_is_left_out(
    write: Write, annotations: list[dict], reason: str
) -> None:
    found = list(read("refdrone", write(["The cars.", "The car."], [*annotations, thing(1, 50)])))
    assert [item.expression for item in found if isinstance(item, Record)] == ["The car."]
    assert [item.reason for item in found if isinstance(item, Rejected)][-1] == reason


@pytest.mark.parametrize("image_id", [None, 9, "a.jpg", [0]])
def test_an_annotation_of_no_expression_stops_since_it_may_be_of_any(write: Write, image_id: object) -> None:
    file = write(["Both cars."], [thing(0, 10), thing(0, 50) | {"image_id": image_id}])
    with pytest.raises(AnnotationError, match=r"mdetr\.json:annotations\.2: image_id .* is that of no expression"):
        list(read("refdrone", file))


def test_expressions_of_one_id_are_left_out(write: Write) -> None:
    file = write(["The car.", "The van."], [thing(0, 10), thing(1, 50)])
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0] | {"file_name": "b.jpg"})
    file.write_text(json.dumps(content))
    rejected, record = read("refdrone", file)
    assert rejected == Rejected("several images of one id", f"{file.name}:images.3: id 0")
    assert record.expression == "The van."


def test_an_empty_annotation_needs_no_flag(write: Write) -> None:
    (record,) = read("refdrone", write(["The buses."], [{"image_id": 0, "category_id": -1, "bbox": [0, 0, 0, 0]}]))
    assert not record.present


@pytest.mark.parametrize(
    ("name", "split"),
    [("RefDrone_train_mdetr.json", "train"), ("RefDrone_val_mdetr.json", "val"), ("finetune_grefcoco_val.json", "val"),
     ("x.json", "train")],
)  # fmt: skip
def test_the_name_says_the_split(write: Write, name: str, split: str) -> None:
    (record,) = read("refdrone", write(["The car."], [thing(0, 10)], name))
    assert record.split == split


def test_a_file_without_annotations_or_cut_off_stops(write: Write) -> None:
    with pytest.raises(AnnotationError, match="has no annotations"):
        list(read("refdrone", write(["The car."], [])))
    file = write(["The car."], [thing(0, 10)])
    file.write_text(file.read_text()[:-20])
    with pytest.raises(AnnotationError, match="is the file whole"):
        list(read("refdrone", file))


def test_true_file(data_folder: Path) -> None:
    records = list(read("refdrone", data_folder / "formats" / "refdrone" / "RefDrone_test_mdetr.json"))
    assert all(isinstance(record, Record) for record in records)
    counts = Counter(min(len(record.boxes), 2) for record in records)
    assert counts == {0: 156, 1: 1148, 2: 2128}
    assert {record.split for record in records} == {"test"}
