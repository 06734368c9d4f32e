import json
from pathlib import Path

import pytest

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected


def test_every_query_of_a_region_is_a_record(tmp_path: Path) -> None:
    (tmp_path / "referit_query_val.json").write_text(json.dumps({"12_1": ["sky", "the sky"], "13_2": ["sea"]}))
    (tmp_path / "referit_bbox.json").write_text(json.dumps({"12_1": [0, 0, 479, 99]}))
    (tmp_path / "referit_imsize.json").write_text(json.dumps({"12.jpg": [480, 360]}))
    sky, again, sea = read("referit", tmp_path)
    assert (sky.image, sky.width, sky.height, sky.split) == ("12.jpg", 480, 360, "val")
    assert sky.box_xyxy == (0, 0, 480, 100)  # the last column and row belong to the region
    assert (sky.id, again.id, again.expression) == ("12_1-0", "12_1-1", "the sky")
    assert sea == Rejected("wrong schema: box", "13_2")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 50_000])
def test_what_is_no_json_object_stops(tmp_path: Path, text: str) -> None:
    (tmp_path / "referit_query_val.json").write_text("{}")
    (tmp_path / "referit_bbox.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"referit_bbox\.json is"):
        list(read("referit", tmp_path))


def test_true_files(data_folder: Path) -> None:
    records = list(read("referit", data_folder / "formats" / "referit"))
    assert len(records) == 60_105
    assert all(isinstance(record, Record) and record.split == "test" for record in records)
    assert len({record.id for record in records}) == 60_105
