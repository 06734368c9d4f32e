import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from referent.data.records import read_records
from referent.mini import rendering
from referent.mini.icons import Materials
from referent.mini.rendering import SceneSet, SettingsError, render
from referent.mini.scenes import CLASSES
from referent.mini.sets import Example, icon_scenes

SETS = [SceneSet(name="scenes", count=5, seed="test"), SceneSet(name="cards", count=1, seed="test")]


@pytest.fixture
def materials(materials_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Materials:
    monkeypatch.setattr(rendering, "PART", 2)
    return Materials.load(
        materials_folder / "artwork.npz", None, materials_folder / "cards", materials_folder / "split.csv", "test"
    )


def hashes(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_any_number_of_processes_writes_the_same(materials: Materials, tmp_path: Path) -> None:
    for workers in (1, 3):
        render(materials, SETS, "test", tmp_path / str(workers), {}, workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "3")
    assert {"test.jsonl", "test.json"} < hashes(tmp_path / "1").keys()


def test_a_written_set_is_the_set_in_memory(materials: Materials, tmp_path: Path) -> None:
    render(materials, SETS[:1], "test", tmp_path, {}, 1)
    records = list(read_records(tmp_path / "test.jsonl"))
    examples = list(icon_scenes(materials, CLASSES, 5, "test", unseen_style=False))
    expected = [
        (e.text, tuple(box) if e.targets else None)
        for example in examples
        for e, box in zip(example.expressions, example.boxes_xyxy.tolist(), strict=True)
    ]
    assert [(record.expression, record.box_xyxy) for record in records] == expected
    with Image.open(tmp_path / "images" / records[0].image) as image:
        difference = np.abs(np.asarray(image, float) - np.asarray(examples[0].image, float))
        assert (image.size, image.size) == ((records[0].width, records[0].height), examples[0].image.size)
    assert difference.mean() < 5


def test_card_photographs_are_the_original_files(materials: Materials, tmp_path: Path) -> None:
    render(materials, SETS[1:], "test", tmp_path, {}, 1)
    original = materials.photos[0][1].file
    assert (tmp_path / "images" / original.name).read_bytes() == original.read_bytes()


def test_a_broken_run_goes_on_from_its_finished_parts(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SceneSet.example

    def breaks(self: SceneSet, materials: Materials, index: int) -> Example:
        if index == 3:
            raise OSError("killed")
        return whole(self, materials, index)

    monkeypatch.setattr(SceneSet, "example", breaks)
    with pytest.raises(OSError, match="killed"):
        render(materials, SETS, "test", tmp_path / "broken", {}, 1)
    assert not (tmp_path / "broken" / "test.jsonl").exists()
    first = tmp_path / "broken" / "images" / "scenes-test-000000.jpg"
    made_at = first.stat().st_mtime_ns

    monkeypatch.setattr(SceneSet, "example", whole)
    render(materials, SETS, "test", tmp_path / "broken", {}, 1)
    render(materials, SETS, "test", tmp_path / "whole", {}, 1)
    assert first.stat().st_mtime_ns == made_at
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")


def test_a_finished_set_is_left_alone_and_other_settings_are_refused(materials: Materials, tmp_path: Path) -> None:
    report = render(materials, SETS, "test", tmp_path, {"artwork": "1"}, 1)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert render(materials, SETS, "test", tmp_path, {"artwork": "1"}, 1) == report
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert json.loads((tmp_path / "test.json").read_text()) == report
    with pytest.raises(SettingsError, match="made with other settings"):
        render(materials, SETS, "test", tmp_path, {"artwork": "2"}, 1)
