import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco
from pydantic import ValidationError

from referent.data.records import (
    AnnotationError,
    Mask,
    Record,
    Rejected,
    RowError,
    check_record,
    read_records,
    run_lengths,
    write_records,
)


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
        (b"\xff", "text of another encoding: save the file as UTF-8"),
        (
            record().model_dump_json().replace("cup", "caf\u00e9").encode("latin-1"),
            "text of another encoding: save the file as UTF-8",
        ),
        (record().model_dump_json().replace('"points":null', '"points":[]').encode(), "wrong schema: points"),
        (
            record().model_dump_json().replace('"mask":null', '"mask":{"size":[50,100],"counts":"0h"}').encode(),
            "wrong schema: mask",
        ),
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
        ({"box_xyxy": (0.1, 0.2, 0.5, 0.9)}, "box in shares of the image, where pixels are expected"),
        ({"mask": Mask(size=(100, 50), counts="Xl4")}, "mask of another size than its image"),
        ({"box_xyxy": (10, 10, 10, 20)}, "box has no area"),
        ({"box_xyxy": (20, 10, 10, 20)}, "box has no area"),
        ({"box_xyxy": (50, 10, 150, 20)}, "box outside the image"),
        ({"box_xyxy": (100.2, 10, 100.8, 20)}, "box outside the image"),
        ({"box_xyxy": None, "boxes_xyxy": ((1, 1, 2, 2), (20, 10, 10, 20))}, "box has no area"),
        ({"box_xyxy": None, "boxes_xyxy": ((1, 1, 2, math.nan),)}, "box is not a number"),
        ({"box_xyxy": None, "boxes_xyxy": ((50, 10, 150, 20), (1, 1, 2, 2))}, "box outside the image"),
        ({"boxes_xyxy": ((1, 1, 2, 2),)}, "both box_xyxy and boxes_xyxy"),
        ({"box_xyxy": None, "points": ((1, math.nan),)}, "point is not a number"),
        ({"box_xyxy": None, "points": ((1, 52),)}, "point outside the image"),
        ({"box_xyxy": None, "mask": Mask(size=(50, 100), counts="Xl4")}, "mask without a box or points"),
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


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("line", [b"\xff", b"[]", b"{} {}"])
def test_only_what_ends_too_early_is_called_cut_off(tmp_path: Path, line: bytes, end: bytes) -> None:
    (tmp_path / "r.jsonl").write_bytes(line + end)
    (found,) = read_records(tmp_path / "r.jsonl")
    assert isinstance(found, Rejected)
    (tmp_path / "r.jsonl").write_bytes(b'{"id": "caf\xc3')
    with pytest.raises(AnnotationError, match=r"r\.jsonl:1 is cut off"):
        list(read_records(tmp_path / "r.jsonl"))


def test_line_ends_of_old_macs_are_read(tmp_path: Path) -> None:
    lines = [record(id=id).model_dump_json() for id in "12"]
    (tmp_path / "r.jsonl").write_bytes("\r".join(lines).encode())
    assert [item.id for item in read_records(tmp_path / "r.jsonl")] == ["1", "2"]


@pytest.mark.parametrize("pixels", [np.zeros((5, 7)), np.ones((1, 1)), np.eye(40), np.ones((300, 2)).cumsum(0) % 2])
def test_the_runs_of_a_mask_are_those_of_coco(pixels: np.ndarray) -> None:
    encoded = coco.encode(np.asfortranarray(pixels, np.uint8))
    runs = run_lengths(encoded["counts"].decode())
    assert sum(runs) == pixels.size
    assert coco.frPyObjects({"size": pixels.shape, "counts": runs}, *pixels.shape) == encoded


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ((100, 200), "0h"),
        ((10**12, 200), "0h"),
        ((-100, 200), "Xl4"),
        ((0, 200), "0"),
        ((1, 2), "5N"),  # runs of 5 and -2
        ((50, 100), "X" * 100_000),
        ((50, 100), ""),
        ((50, 100), "\u00e9"),
    ],
)
def test_a_mask_that_does_not_fit_its_size_is_no_mask(size: tuple[int, int], counts: str) -> None:
    with pytest.raises(ValidationError):
        Mask(size=size, counts=counts)


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
