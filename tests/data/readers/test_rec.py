import json
from pathlib import Path

import pytest

from referent.data.readers import read
from referent.data.records import Rejected

ROW = {"image": "train2014/a.jpg", "sent": "the red  cup", "bbox": [5.0, 10.0, 25.5, 20.0], "height": 40, "width": 60}


def write(tmp_path: Path, *rows: object, name: str = "refcoco+_testA.jsonl") -> Path:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / name


def test_a_row_needs_no_image(tmp_path: Path) -> None:
    (record,) = read("rec", write(tmp_path, ROW))
    assert (record.image, record.width, record.height, record.split) == ("train2014/a.jpg", 60, 40, "testA")
    assert (record.expression, record.box_xyxy) == ("the red cup", (5, 10, 25.5, 20))


@pytest.mark.parametrize(
    ("name", "split"), [("refcocog_val.jsonl", "val"), ("referit_test.jsonl", "test"), ("rows.jsonl", "test")]
)
def test_the_name_of_the_file_tells_the_split(tmp_path: Path, name: str, split: str) -> None:
    (record,) = read("rec", write(tmp_path, ROW, name=name))
    assert record.split == split


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sent": " "}, "empty expression"),
        ({"bbox": [5, 10, 5, 20]}, "box has no area"),
        ({"bbox": [5, 10, 25]}, "wrong schema: bbox"),
        ({"width": 0}, "wrong schema: width"),
        ({"image": "/etc/a.jpg"}, "image path leaves the image folder"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, change: dict, reason: str) -> None:
    (found,) = read("rec", write(tmp_path, ROW | change))
    assert isinstance(found, Rejected)
    assert found.reason == reason
