"""COCO, VOC and CSV files of the same scene say the same."""

import json
from pathlib import Path

import pytest
from PIL import Image

from referent.data.readers import read
from referent.data.records import Record, Rejected

DOGS, CAT = [(10, 40, 30, 60), (90, 40, 110, 60), (150, 40, 170, 60)], (60, 5, 80, 20)
VOC = """<annotation><filename>wide.jpg</filename><size><width>200</width><height>100</height><depth>3</depth></size>
{}</annotation>"""
VOC_OBJECT = """<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""


def write(tmp_path: Path, format: str, things: list[tuple[str, tuple]], width: int = 200, height: int = 100) -> Path:
    names = ["bird", "cat", "dog"]
    if format == "coco":
        annotations = [
            {"id": i, "image_id": 1, "category_id": names.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for i, (name, (x1, y1, x2, y2)) in enumerate(things)
        ]
        image = {"id": 1, "file_name": "wide.jpg", "width": width, "height": height}
        content = {"images": [image], "annotations": annotations,
                   "categories": [{"id": i, "name": name} for i, name in enumerate(names)]}  # fmt: skip
        file = tmp_path / "instances_train2014.json"
        file.write_text(json.dumps(content))
        return file
    if format == "voc":
        folder = tmp_path / "Annotations"
        folder.mkdir()
        objects = [VOC_OBJECT.format(name, x1 + 1, y1 + 1, x2, y2) for name, (x1, y1, x2, y2) in things]
        (folder / "wide.xml").write_text(VOC.format("".join(objects)))
        (folder / "other.xml").write_text(VOC.replace("wide", "tall").format(VOC_OBJECT.format("bird", 1, 1, 9, 9)))
        return tmp_path
    file = tmp_path / "labels.csv"
    rows = [f"wide.jpg,{width},{height},{name},{','.join(map(str, box))}" for name, box in things]
    file.write_text("\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows]))
    return file


def said(items: list) -> dict[str, tuple | None]:
    return {item.expression.removeprefix("find ").removeprefix("the "): item.box_xyxy for item in items}


@pytest.mark.parametrize("format", ["coco", "voc", "csv"])
def test_labels_become_expressions_with_their_boxes(tmp_path: Path, format: str) -> None:
    things = [*(("dog", box) for box in DOGS), ("cat", CAT)]
    found = [item for item in read(format, write(tmp_path, format, things)) if item.image == "wide.jpg"]
    texts = said([item for item in found if item.present])
    assert 1 <= len(found) <= 8
    assert all(box == CAT for text, box in texts.items() if text == "cat")
    assert all(box in DOGS for text, box in texts.items() if text.split()[0] != "cat" and "dog" in text.split()[:2])
    assert not any(text == "dog" for text in texts)
    assert all(item.tags.keys() >= {"kind"} for item in found)


@pytest.mark.parametrize("format", ["coco", "voc", "csv"])
def test_the_same_file_says_the_same_twice(tmp_path: Path, format: str) -> None:
    file = write(tmp_path, format, [("dog", DOGS[0]), ("dog", DOGS[1]), ("cat", CAT)])
    assert list(read(format, file)) == list(read(format, file))


def test_labels_made_at_another_size_are_scaled_to_the_file(tmp_path: Path, images: Path) -> None:
    file = write(tmp_path, "csv", [("cat", (20, 10, 40, 30))], width=400, height=200)
    record = next(iter(read("csv", file, images)))
    assert (record.width, record.height, record.box_xyxy) == (200, 100, (10, 5, 20, 15))


def test_labels_of_other_proportions_are_refused(tmp_path: Path, images: Path) -> None:
    file = write(tmp_path, "csv", [("cat", (20, 10, 40, 30))], width=100, height=200)
    assert list(read("csv", file, images)) == [Rejected("image size differs from the annotation", "wide.jpg")]


def test_a_name_with_a_broken_box_is_not_used_in_its_image(tmp_path: Path) -> None:
    file = write(tmp_path, "csv", [("dog", DOGS[0]), ("dog", (50, 50, 50, 60)), ("cat", CAT)])
    broken, *rest = read("csv", file)
    assert broken == Rejected("box has no area", "wide.jpg: object 2")
    assert rest
    assert not any("dog" in item.expression for item in rest)


def test_a_crowd_makes_its_name_unusable(tmp_path: Path) -> None:
    file = write(tmp_path, "coco", [("dog", DOGS[0]), ("dog", DOGS[1]), ("cat", CAT)])
    content = json.loads(file.read_text())
    content["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    found = list(read("coco", file))
    assert found
    assert not any("dog" in item.expression for item in found)


def test_voc_corners_count_from_one_and_splits_are_those_of_the_lists(tmp_path: Path) -> None:
    folder = write(tmp_path, "voc", [("cat", (0, 0, 200, 100))])
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("wide\n")
    records = {item.image: item for item in read("voc", folder) if item.present}
    assert records["wide.jpg"].box_xyxy == (0, 0, 200, 100)
    assert (records["wide.jpg"].split, records["tall.jpg"].split) == ("val", "train")


def test_files_that_are_no_annotations_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "voc", [("cat", CAT)])
    (folder / "Annotations" / "a.xml").write_text("<annotation>")
    (folder / "Annotations" / "b.xml").write_text("<annotation/>")
    (folder / "Annotations" / "c.xml").write_text("<?xml version='1.0' encoding='none'?><a/>")
    rejected = [item for item in read("voc", folder) if isinstance(item, Rejected)]
    assert rejected == [
        Rejected("wrong schema: xml", "a.xml"),
        Rejected("wrong schema: filename", "b.xml"),
        Rejected("wrong schema: xml", "c.xml"),
    ]


def test_true_labels_of_the_cards(data_folder: Path) -> None:
    cards = data_folder / "cards"
    items = list(read("csv", cards / "labels.csv", cards / "images"))
    records = [item for item in items if isinstance(item, Record)]
    assert [item.reason for item in items if isinstance(item, Rejected)] == ["nothing unambiguous to say"]
    assert len({record.image for record in records}) == 295
    with Image.open(cards / "images" / records[0].image) as image:
        assert image.size == (records[0].width, records[0].height)
    assert {"name", "position", "relation", "size", "absent"} <= {record.tags["kind"] for record in records}
