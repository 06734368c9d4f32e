import math
from pathlib import Path

import pytest

from referent.data.records import Mask, Record, Rejected, RowError, check_record, read_records, write_records


def record(**fields: object) -> Record:
    return Record.model_validate(
        {"id": "1", "image": "a.jpg", "width": 100, "height": 50, "expression": "the cup", "box_xyxy": (10, 10, 20, 20)}
        | fields
    )


def test_records_survive_writing_and_reading(tmp_path: Path) -> None:
    records = [record(), record(id="2", box_xyxy=None, points=((1, 2), (3, 4)), split="val", tags={"kind": "name"})]
    records.append(record(id="3", box_xyxy=None, boxes_xyxy=((10, 10, 20, 20), (30, 10, 40, 20))))
    assert write_records(tmp_path / "r.jsonl", records) == 3
    assert list(read_records(tmp_path / "r.jsonl")) == records


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "wrong schema: json"),
        (b"\xff", "wrong schema: json"),
        (b'{"id": "1"}', "wrong schema: image"),
        (record().model_dump_json().replace('"width":100', '"width":0').encode(), "wrong schema: width"),
        (record().model_dump_json().replace('"train"', '"../train"').encode(), "wrong schema: split"),
        (
            record().model_dump_json().replace('"boxes_xyxy":null', '"boxes_xyxy":[]').encode(),
            "wrong schema: boxes_xyxy",
        ),
        (
            record().model_dump_json().replace('"boxes_xyxy":null', '"boxes_xyxy":[[1,2,3]]').encode(),
            "wrong schema: boxes_xyxy",
        ),
    ],
)
def test_a_row_of_the_wrong_shape_is_named_and_the_next_one_read(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "r.jsonl").write_bytes(line + b"\n" + record().model_dump_json().encode())
    assert list(read_records(tmp_path / "r.jsonl")) == [Rejected(reason, "r.jsonl:1"), record()]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"box_xyxy": (math.nan, 0, 1, 1)}, "box is not a number"),
        ({"box_xyxy": (0, 0, math.inf, 1)}, "box is not a number"),
        ({"box_xyxy": (10, 10, 10, 20)}, "box has no area"),
        ({"box_xyxy": (20, 10, 10, 20)}, "box has no area"),
        ({"box_xyxy": (50, 10, 150, 20)}, "box outside the image"),
        ({"box_xyxy": (100.2, 10, 100.8, 20)}, "box outside the image"),
        ({"box_xyxy": None, "boxes_xyxy": ((1, 1, 2, 2), (20, 10, 10, 20))}, "box has no area"),
        ({"box_xyxy": None, "boxes_xyxy": ((1, 1, 2, math.nan),)}, "box is not a number"),
        ({"box_xyxy": None, "boxes_xyxy": ((50, 10, 150, 20), (1, 1, 2, 2))}, "box outside the image"),
        ({"boxes_xyxy": ((1, 1, 2, 2),)}, "both box_xyxy and boxes_xyxy"),
        ({"box_xyxy": None, "points": ((1, math.nan),)}, "point is not a number"),
        ({"box_xyxy": None, "points": ((1, 51),)}, "point outside the image"),
        ({"box_xyxy": None, "mask": Mask(size=(50, 100), counts="0")}, "mask without a box or points"),
        ({"expression": " \n "}, "empty expression"),
        ({"expression": "x" * 10_000}, "expression over 1000 characters"),
        ({"expression": "a \x00 b"}, "control characters in the expression"),
        ({"image": "../a.jpg"}, "image path leaves the image folder"),
        ({"image": "/a.jpg"}, "image path leaves the image folder"),
    ],
)
def test_what_is_unfit_for_use_is_named(fields: dict, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        check_record(record(**fields))


def test_a_sound_record_gets_a_clean_expression_and_a_box_within_the_image() -> None:
    checked = check_record(record(expression=" the\n cup ", box_xyxy=(-0.5, 10, 100.5, 50)))
    assert (checked.expression, checked.box_xyxy) == ("the cup", (0, 10, 100, 50))
    several = check_record(record(box_xyxy=None, boxes_xyxy=((-0.5, 10, 100.5, 50), (1, 1, 2, 2))))
    assert several.boxes_xyxy == ((0, 10, 100, 50), (1, 1, 2, 2))


def test_boxes_are_those_of_every_referent_of_one_of_several_and_of_none() -> None:
    several = ((1, 1, 2, 2), (3, 3, 4, 4))
    assert record().boxes == ((10, 10, 20, 20),)
    assert record(box_xyxy=None, boxes_xyxy=several).boxes == several
    assert record(box_xyxy=None, boxes_xyxy=several).present
    assert record(box_xyxy=None).boxes == ()
    assert not record(box_xyxy=None).present
