import json
import os
from pathlib import Path

import pytest

from referent.data.readers import READERS, AnnotationError, read
from referent.data.readers.rows import split_of
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
    with pytest.raises(AnnotationError, match="unknown format 'darknet'; there are jsonl, csv"):
        list(read("darknet", tmp_path))


@pytest.mark.parametrize("format", READERS)
def test_missing_annotations_are_an_error_and_not_an_empty_set(tmp_path: Path, format: str) -> None:
    with pytest.raises((OSError, AnnotationError)):
        list(read(format, tmp_path / "none.json", tmp_path))


@pytest.mark.parametrize("format", ["refcoco", "conversations", "pixmo", "yolo"])
def test_shares_of_an_image_need_the_images(tmp_path: Path, format: str) -> None:
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(AnnotationError, match="--images"):
        list(read(format, tmp_path / "rows.json"))


@pytest.mark.parametrize("format", ["refcoco", "rec", "conversations", "pixmo", "gseval"])
@pytest.mark.parametrize("row", [None, 3, "text", [], {}, {"image": 5}])
def test_rows_of_any_shape_are_counted_and_the_rest_read(tmp_path: Path, format: str, row: object) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{{\n{json.dumps(row)}\n")
    found = list(read(format, tmp_path / "rows.jsonl", tmp_path))
    assert len(found) == 3
    assert all(isinstance(item, Rejected) and item.reason.startswith("wrong schema") for item in found)


ROWS = {
    "jsonl": {"id": "1", "image": "wide.jpg", "width": 200, "height": 100, "expression": "a", "box_xyxy": [1, 1, 9, 9]},
    "refcoco": {"image": "wide.jpg", "text": "a", "bbox": [0.5, 0.5, 0.2, 0.2]},
    "gseval": {
        "idx": 1, "image_path": "wide.jpg", "class_id": 1, "label": "a", "caption": "a", "box": [1, 1, 9, 9],
        "segmentation": {"size": [2, 2], "counts": [0, 4]},
    },
    "pixmo": {"image_url": "https://example.org/none.jpg", "label": "a", "points": [], "count": 0},
}  # fmt: skip


def text_of(format: str, suffix: str) -> str:
    row = json.dumps(ROWS[format])
    return f"{row}\n\n{row}\n \n" if suffix == "jsonl" else f"\n[{row},\n{row}]\n\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("format", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_byte_order_marks_and_blank_lines_cost_nothing(
    tmp_path: Path, images: Path, format: str, suffix: str, encoding: str
) -> None:
    if (format, suffix) == ("jsonl", "json"):
        pytest.skip("records are lines")
    file = tmp_path / f"rows.{suffix}"
    file.write_bytes(text_of(format, suffix).encode(encoding))
    found = list(read(format, file, images))
    assert len(found) == 2
    assert not any("wrong schema" in item.reason for item in found if isinstance(item, Rejected))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("format", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_file_that_is_cut_off_stops_everything(
    tmp_path: Path, images: Path, format: str, suffix: str, encoding: str
) -> None:
    if (format, suffix) == ("jsonl", "json"):
        pytest.skip("records are lines")
    file = tmp_path / f"rows.{suffix}"
    file.write_bytes(text_of(format, suffix).rstrip().encode(encoding)[:-7])
    with pytest.raises(AnnotationError, match=rf"rows\.{suffix}"):
        list(read(format, file, images))


def test_letters_of_another_encoding_are_no_expression(tmp_path: Path) -> None:
    record = Record(id="7", image="a.jpg", width=9, height=9, expression="gar\ufffdon", box_xyxy=(1, 1, 5, 5))
    (tmp_path / "r.jsonl").write_text(record.model_dump_json() + "\n")
    (found,) = read("jsonl", tmp_path / "r.jsonl")
    assert found == Rejected("letters of the expression were lost in another encoding", "r.jsonl: 7")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("latest.csv", "none"), ("contest.csv", "none"), ("VAL.csv", "val"), ("Test.json", "test"),
        ("instances_train2014.json", "train"), ("refcoco_testA.jsonl", "testA"), ("refcoco-TESTB.jsonl", "testB"),
        ("voc_trainval.json", "trainval"), ("instances_val2017.json", "val"), ("2014test.json", "test"),
    ],
)  # fmt: skip
def test_the_split_is_a_word_at_the_end_of_the_name(name: str, split: str) -> None:
    assert split_of(Path(name), default="none") == split


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_a_name_of_another_encoding_costs_its_own_image_alone(tmp_path: Path, images: Path, format: str) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (images / f"{odd}.jpg").write_bytes((images / "wide.jpg").read_bytes())
    (images / "classes.txt").write_text("cup\n")
    for name in ("wide", odd):
        (images / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (images / f"{name}.xml").write_text("<annotation>")
    found = list(read(format, images, images))
    assert r"caf\xe9" in "".join(item.where for item in found if isinstance(item, Rejected))
    for item in found:
        str(item).encode()
    if format == "yolo":
        assert Rejected("image name of another encoding", r"caf\xe9.jpg") in found
        assert "wide.jpg" in {item.image for item in found if isinstance(item, Record)}
