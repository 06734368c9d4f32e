import json
from pathlib import Path

import pytest

from referent.data.downloads import cached_name
from referent.data.readers import read
from referent.data.records import Rejected

URL = "https://example.org/a.jpg"


def row(**fields: object) -> dict:
    points = [{"x": 25.0, "y": 50.0}, {"x": 100.0, "y": 0.0}]
    return {
        "image_url": URL, "image_sha256": "00", "label": "cups", "points": points, "count": 2,
        "collection_method": "pointing",
    } | fields  # fmt: skip


@pytest.fixture
def folder(images: Path) -> Path:
    (images / "wide.jpg").rename(images / cached_name(URL))
    return images


@pytest.mark.parametrize("name", ["train.jsonl", "points.json"])
def test_percent_become_pixels(tmp_path: Path, folder: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(row() if name.endswith("l") else [row()]))
    (record,) = read("pixmo", tmp_path / name, folder)
    assert record.points == ((50, 50), (200, 0))
    assert (record.box_xyxy, record.expression, record.image) == (None, "cups", cached_name(URL))


def test_a_point_barely_outside_is_on_the_edge(tmp_path: Path, folder: Path) -> None:
    points = [{"x": 100.2, "y": -0.1}, {"x": -0.2, "y": 50.0}]
    (tmp_path / "p.jsonl").write_text(json.dumps(row(points=points, count=None)))
    (record,) = read("pixmo", tmp_path / "p.jsonl", folder)
    assert record.points == ((200, 0), (0, 50))


def test_no_points_mean_an_absent_object(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row(points=[], count=0)))
    (record,) = read("pixmo", tmp_path / "p.jsonl", folder)
    assert not record.present


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"points": []}, "no points"),
        ({"points": [], "count": None}, "no points"),
        ({"points": [{"x": 120.0, "y": 1.0}], "count": 1}, "point outside the image"),
        ({"count": 7}, "count is not the number of points"),
        ({"count": 0}, "count is not the number of points"),
        ({"points": [{"x": None, "y": 1.0}]}, "wrong schema: points.x"),
        ({"label": ""}, "empty expression"),
        ({"image_url": "https://example.org/b.jpg"}, "missing image"),
    ],
)
def test_rows_unfit_for_use_are_named(tmp_path: Path, folder: Path, fields: dict, reason: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row(**fields)))
    (found,) = read("pixmo", tmp_path / "p.jsonl", folder)
    assert isinstance(found, Rejected)
    assert found.reason == reason
