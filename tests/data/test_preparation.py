import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from referent.data.preparation import PreparationError, PreparationOptions, prepare
from referent.data.records import Record, read_records

SOUND = {"image": "wide.jpg", "width": 200, "height": 100, "expression": "the cup", "box_xyxy": [10, 10, 50, 50]}
BAD = {
    "missing image": {"image": "none.jpg"},
    "image cannot be decoded": {"image": "truncated.jpg"},
    "image size differs from the annotation": {"image": "tall.jpg"},
    "box outside the image": {"box_xyxy": [150, 10, 250, 50]},
    "box is not a number": {"box_xyxy": [float("nan"), 10, 50, 50]},
    "box has no area": {"box_xyxy": [10, 10, 10, 50]},
    "empty expression": {"expression": "  "},
    "expression over 1000 characters": {"expression": "x" * 10_000},
    "wrong schema: box_xyxy": {"box_xyxy": "10 10 50 50"},
    "wrong schema: expression": {"expression": None},
}


def write(file: Path, rows: list[dict]) -> Path:
    file.write_text("\n".join(json.dumps({"id": str(number)} | row) for number, row in enumerate(rows)))
    return file


@pytest.fixture
def bad_rows(tmp_path: Path, images: Path) -> Path:
    """A sound row, then one of every fault, then another sound one and no JSON at all."""
    whole = (images / "wide.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    file = write(tmp_path / "rows.jsonl", [SOUND, *(SOUND | fault for fault in BAD.values()), SOUND])
    file.write_text(file.read_text() + "\n{not json\n")
    return file


def test_every_fault_is_counted_under_its_name_and_nothing_dies_half_way(
    tmp_path: Path, images: Path, bad_rows: Path
) -> None:
    stats = prepare("jsonl", [bad_rows], images, tmp_path / "out", PreparationOptions())
    counts = {reason: found["count"] for reason, found in stats["rejected"].items()}
    assert counts == dict.fromkeys([*BAD, "wrong schema: json"], 1)
    assert [record.id for record in read_records(tmp_path / "out" / "train.jsonl")] == ["0", "11"]


@pytest.mark.parametrize(("reason", "fault"), BAD.items(), ids=BAD.keys())
def test_strict_names_place_and_reason_and_writes_nothing(
    tmp_path: Path, images: Path, bad_rows: Path, reason: str, fault: dict
) -> None:
    file = write(tmp_path / "one.jsonl", [SOUND, SOUND | fault])
    expected = '; jsonl expects lines {"id", .*' if "wrong schema" in reason else ""
    with pytest.raises(PreparationError, match=rf"^one\.jsonl(:2|: 1): {reason}{expected}$"):
        prepare("jsonl", [file], images, tmp_path / "out", PreparationOptions(strict=True))
    assert list((tmp_path / "out").iterdir()) == []


def test_stats_json_describes_the_files_as_they_are(tmp_path: Path, images: Path) -> None:
    rows = [SOUND, SOUND | {"split": "val"}, SOUND | {"box_xyxy": None}]
    returned = prepare("jsonl", [write(tmp_path / "r.jsonl", rows)], images, tmp_path / "out", PreparationOptions())
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert stats == returned
    assert {name: split["records"] for name, split in stats["splits"].items()} == {"train": 2, "val": 1}
    assert stats["splits"]["train"]["absent_share"] == 0.5
    for split in stats["splits"].values():
        assert hashlib.md5((tmp_path / "out" / split["file"]).read_bytes()).hexdigest() == split["md5"]


def test_shares_divide_by_image_and_alike_every_time(tmp_path: Path) -> None:
    rows = [SOUND | {"image": f"{i % 200}.jpg"} for i in range(600)]
    file, options = write(tmp_path / "r.jsonl", rows), PreparationOptions({"train": 0.8, "val": 0.2})
    stats = prepare("jsonl", [file], None, tmp_path / "a", options)
    assert stats["splits"] == prepare("jsonl", [file], None, tmp_path / "b", options)["splits"]
    train, val = ({r.image for r in read_records(tmp_path / "a" / f"{s}.jsonl")} for s in ("train", "val"))
    assert not train & val
    assert 20 <= len(val) <= 60


def test_limit_counts_records_that_were_written(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [SOUND | {"expression": ""}, *[SOUND] * 5])
    stats = prepare("jsonl", [file], None, tmp_path / "out", PreparationOptions(limit=2))
    assert stats["splits"]["train"]["records"] == 2


def test_several_files_make_one_dataset(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", [SOUND | {"split": name}]) for name in ("train", "val")]
    assert set(prepare("jsonl", files, None, tmp_path / "out", PreparationOptions())["splits"]) == {"train", "val"}


def test_an_id_is_taken_once_in_a_split(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", [SOUND | {"split": name}]) for name in ("train", "val")]
    stats = prepare("jsonl", [*files, files[0]], None, tmp_path / "out", PreparationOptions())
    assert {name: split["records"] for name, split in stats["splits"].items()} == {"train": 1, "val": 1}
    assert stats["rejected"] == {
        "id of an earlier record: ids must be unique": {"count": 1, "such_as": ["train.jsonl: 0"]}
    }


def test_a_split_of_an_earlier_run_is_not_left_beside_new_ones(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [SOUND | {"image": f"{i}.jpg"} for i in range(40)])
    halves = PreparationOptions({"train": 0.5, "val": 0.5})
    first = prepare("jsonl", [file], None, tmp_path / "out", halves)
    with pytest.raises(PreparationError, match=r"is also in .*out/val\.jsonl, of an earlier run: remove that"):
        prepare("jsonl", [file], None, tmp_path / "out", PreparationOptions())
    assert json.loads((tmp_path / "out" / "stats.json").read_text()) == first
    assert prepare("jsonl", [file], None, tmp_path / "out", halves) == first
    (tmp_path / "out" / "val.jsonl").unlink()
    assert set(prepare("jsonl", [file], None, tmp_path / "out", PreparationOptions())["splits"]) == {"train"}
    other = write(tmp_path / "val.jsonl", [SOUND | {"image": "other.jpg", "split": "val"}])
    assert set(prepare("jsonl", [other], None, tmp_path / "out", PreparationOptions())["splits"]) == {"val"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "none was found; is the format jsonl"),
        ("{}", r'wrong schema: id \(1\); jsonl expects lines {"id", "image", "width"'),
    ],
)
def test_nothing_fit_for_use_is_an_error(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(PreparationError, match=says):
        prepare("jsonl", [tmp_path / "r.jsonl"], None, tmp_path / "out", PreparationOptions())
    assert list((tmp_path / "out").iterdir()) == []


PEAK = """
import sys
from pathlib import Path
from referent.data import preparation
if sys.argv[3] == "hoarding":
    read = preparation.read
    preparation.read = lambda *arguments: iter(list(read(*arguments)))
folder = Path(sys.argv[1])
options = preparation.PreparationOptions({"train": .9, "val": .1})
preparation.prepare("refcoco", [folder / sys.argv[2]], folder / "images", folder / "out", options)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0])
"""


def peak_kb(folder: Path, rows: int, reading: str) -> int:
    """Of a process of its own. Not `ru_maxrss`: that begins at what the parent had, and would measure pytest."""
    row = {"image": "wide.jpg", "text": "word " * 40, "bbox": [0.5, 0.5, 0.2, 0.2]}
    with (folder / "rows.jsonl").open("w") as out:
        out.writelines(json.dumps(row) + "\n" for _ in range(rows))
    command = [sys.executable, "-c", PEAK, str(folder), "rows.jsonl", reading]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(("reading", "constant"), [("streaming", True), ("hoarding", False)])
def test_memory_does_not_grow_with_the_number_of_rows(
    tmp_path: Path, images: Path, reading: str, constant: bool
) -> None:
    few, many = (peak_kb(tmp_path, rows, reading) for rows in (500, 12_000))
    assert (many - few < 4_000) == constant  # the second case shows that growth would be seen


def test_records_of_the_output_are_read_as_they_went_in(tmp_path: Path) -> None:
    prepare("jsonl", [write(tmp_path / "r.jsonl", [SOUND])], None, tmp_path / "out", PreparationOptions())
    assert list(read_records(tmp_path / "out" / "train.jsonl")) == [Record.model_validate({"id": "0"} | SOUND)]
