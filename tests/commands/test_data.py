import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from referent.commands.data import app, parse_shares

ROW = {"image": "wide.jpg", "text": "left man", "bbox": [0.25, 0.5, 0.5, 0.8]}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def scenes(folder: Path, out: Path, *more: object) -> Result:
    given = ("--artwork", folder / "artwork.npz", "--cards", folder / "cards", "--split-file", folder / "split.csv")
    return run("scenes", *given, "--out", out, "--workers", 1, *more)


def test_prepare_writes_a_dataset_and_tells_of_it(tmp_path: Path, images: Path) -> None:
    (tmp_path / "refcoco_val.jsonl").write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW | {'text': ''})}\n")
    result = run("prepare", "refcoco", tmp_path / "refcoco_val.jsonl", "--images", images, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "empty expression" in result.output
    assert len((tmp_path / "out" / "val.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["refcoco", "--strict"], "error: rows.jsonl:1: empty expression"),
        (["darknet"], "unknown format 'darknet'"),
        (["refcoco", "--split-shares", "train=.9"], "add up to 0.9"),
        (["refcoco", "--urls"], "--urls is for pixmo"),
        (["jsonl"], "wrong schema: id"),
    ],
)
def test_what_cannot_be_prepared_is_one_line_and_exit_code_1(
    tmp_path: Path, images: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"text": " "}))
    format, *options = arguments
    result = run("prepare", format, tmp_path / "rows.jsonl", "--images", images, "--out", tmp_path / "out", *options)
    assert result.exit_code == 1
    last = [line for line in result.output.splitlines() if "error:" in line]
    assert len(last) == 1
    assert says in last[0]


def test_scenes_writes_several_sets_into_one_split(materials_folder: Path, tmp_path: Path) -> None:
    result = scenes(
        materials_folder, tmp_path / "out", "--split", "test", "--set", "scenes", "--set", "cards", "--count", 2
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "test.jsonl").read_text().splitlines()]
    assert {row["tags"]["set"] for row in rows} == {"scenes", "cards"}
    assert all((tmp_path / "out" / "images" / row["image"]).exists() for row in rows)


def test_scenes_writes_the_training_mix_by_default(materials_folder: Path, tmp_path: Path) -> None:
    result = scenes(materials_folder, tmp_path / "out", "--split", "train", "--count", 3, "--mix", "cut=.5,icons=.5")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "train.json").read_text())["settings"]["sets"] == [
        {"name": "mix", "count": 3, "seed": "train", "mix": {"cut": 0.5, "icons": 0.5}, "several": 0.0}
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--split", "val", "--backgrounds", "."], "--backgrounds is only for training"),
        (
            ["--split", "val", "--mix", "photo=1,icon=0"],
            "name icons, crowd, cut, photo, alike, rows, many once at most",
        ),
        (["--split", "val", "--mix", "photo=2,cut=-1"], "must be positive"),
        (["--split", "val", "--set", "scenes", "--artwork", __file__], "error"),
        (["--split", "val", "--cards", "nowhere"], "nowhere/labels.csv"),
    ],
)
def test_scenes_refuses_what_makes_no_sense(
    materials_folder: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    result = scenes(materials_folder, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert says in result.output


@pytest.mark.parametrize("text", ["", "train", "train=", "train=x", "train=nan", "train=.5,train=.5", "../a=1", "a=2"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"once at most|has no share|add up to"):
        parse_shares(text)


def test_help_needs_nothing_that_serving_has_not() -> None:
    heavy = "{'torch', 'ijson', 'imagehash', 'pycocotools', 'scipy', 'tqdm', 'numpy'}"
    code = f"import sys, referent.commands.data; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
