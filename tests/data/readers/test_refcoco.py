import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from referent.data.readers import read
from referent.data.records import Record, Rejected

ROW = {"image": "wide.jpg", "text": "left man", "bbox": [0.25, 0.5, 0.5, 0.8]}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".pkl"])
def test_a_row_becomes_pixels_of_its_image(tmp_path: Path, images: Path, suffix: str) -> None:
    file = tmp_path / f"refcoco_val{suffix}"
    pickled = pickle.dumps([ROW | {"bbox": np.array(ROW["bbox"], np.float32)}])
    file.write_bytes(pickled if suffix == ".pkl" else json.dumps(ROW if suffix == ".jsonl" else [ROW]).encode())
    (record,) = read("refcoco", file, images)
    assert record.box_xyxy == pytest.approx((0, 10, 100, 90), abs=1e-4)
    assert (record.width, record.height, record.split, record.expression) == (200, 100, "val", "left man")


def test_an_image_turned_by_exif_is_taken_as_it_is_shown(tmp_path: Path, images: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"image": "turned.jpg"}))
    (record,) = read("refcoco", tmp_path / "rows.jsonl", images)
    assert (record.width, record.height) == (100, 200)


def test_a_missing_image_is_named(tmp_path: Path, images: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"image": "none.jpg"}))
    assert list(read("refcoco", tmp_path / "rows.jsonl", images)) == [Rejected("missing image", "rows.jsonl:1")]


@pytest.mark.parametrize(("name", "rows", "split"), [("refcoco_val", 3811, "val"), ("refcoco_test", 1975, "test")])
def test_true_files(data_folder: Path, tmp_path: Path, name: str, rows: int, split: str) -> None:
    file = data_folder / "formats" / "refcoco" / f"{name}.jsonl"
    stub = tmp_path / "stub.jpg"
    Image.new("RGB", (64, 48)).save(stub)
    for image in {json.loads(line)["image"] for line in file.open()}:
        (tmp_path / image).symlink_to(stub)
    records = list(read("refcoco", file, tmp_path))
    assert len(records) == rows
    assert all(isinstance(record, Record) and record.present and record.split == split for record in records)
    assert len({record.id for record in records}) == rows
