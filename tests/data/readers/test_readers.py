import json
from pathlib import Path

import pytest

from referent.data.readers import READERS, AnnotationError, read
from referent.data.records import Record, Rejected


def test_our_own_records_are_a_format(tmp_path: Path) -> None:
    record = Record(id="1", image="a.jpg", width=9, height=9, expression=" a  cup", box_xyxy=(1, 1, 5, 5))
    (tmp_path / "r.jsonl").write_text(record.model_dump_json())
    assert [item.expression for item in read("jsonl", tmp_path / "r.jsonl")] == ["a cup"]


def test_what_is_unfit_comes_out_named_with_its_place(tmp_path: Path) -> None:
    record = Record(id="7", image="a.jpg", width=9, height=9, expression=" ", box_xyxy=(1, 1, 5, 5))
    (tmp_path / "r.jsonl").write_text(record.model_dump_json())
    assert list(read("jsonl", tmp_path / "r.jsonl")) == [Rejected("empty expression", "r.jsonl: 7")]


def test_an_unknown_format_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="unknown format 'yolo'; there are jsonl, refer"):
        list(read("yolo", tmp_path))


@pytest.mark.parametrize("format", READERS)
def test_missing_annotations_are_an_error_and_not_an_empty_set(tmp_path: Path, format: str) -> None:
    with pytest.raises((OSError, AnnotationError)):
        list(read(format, tmp_path / "none.json", tmp_path))


@pytest.mark.parametrize("format", ["refcoco", "conversations", "pixmo"])
def test_shares_of_an_image_need_the_images(tmp_path: Path, format: str) -> None:
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(AnnotationError, match="--images"):
        list(read(format, tmp_path / "rows.json"))


@pytest.mark.parametrize("format", ["refcoco", "conversations", "pixmo", "gseval"])
@pytest.mark.parametrize("row", [None, 3, "text", [], {}, {"image": 5}])
def test_rows_of_any_shape_are_counted_and_the_rest_read(tmp_path: Path, format: str, row: object) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{{\n{json.dumps(row)}\n")
    found = list(read(format, tmp_path / "rows.jsonl", tmp_path))
    assert len(found) == 3
    assert all(isinstance(item, Rejected) and item.reason.startswith("wrong schema") for item in found)


def test_a_json_array_that_breaks_off_is_read_up_to_there(tmp_path: Path) -> None:
    rows = [
        {"id": i, "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]} for i in "ab"
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows)[:-10])
    reasons = [item.reason for item in read("conversations", tmp_path / "rows.json", tmp_path)]
    assert reasons == ["not a question for a box", "wrong schema: json"]
