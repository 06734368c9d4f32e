import csv
import io
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from referent.data.records import read_records
from referent.evaluation.analysis import analyse
from referent.evaluation.evaluate import Results
from referent.evaluation.predictions import read_predictions
from referent.evaluation.report import picture, write_report
from tests.support.scored import BOX, FAR, HALF, record, results

WILD = "<script>alert('|')</script>"


class Page(HTMLParser):
    """Headings, table cells, captions and sources of pictures, as a browser would see them."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.setdefault(self.tags[-1], []).append(data.strip())


@pytest.fixture
def found() -> Results:
    tags = {"kind": "name"}
    return results(
        (record("a", tags=tags, expression=WILD), {"box_xyxy": FAR, "score": 0.2, "ms": 5}),
        (record("b", tags=tags), {"box_xyxy": HALF, "score": 0.6, "ms": 7}),
        (record("c", tags=tags), None),
        (record("d", None), {"box_xyxy": FAR, "score": 0.1, "ms": 9}),
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for id in "abcd":
        Image.new("RGB", (100, 100), "white").save(tmp_path / f"{id}.jpg")
    return tmp_path


@pytest.fixture
def folder(found: Results, images: Path) -> Path:
    return write_report(images / "out", {"name": "cups", "source": "given"}, analyse(found), found, images)


def test_folder_is_named_after_run_and_time(folder: Path) -> None:
    assert re.fullmatch(r"cups-\d{8}-\d{6}", folder.name)
    assert {file.name for file in folder.iterdir()} == {
        "report.html", "report.md", "figures.json", "records.csv", "records.jsonl", "predictions.jsonl",
    }  # fmt: skip


def test_page_holds_tables_charts_and_pictures_in_itself(folder: Path) -> None:
    page = Page(folder / "report.html")
    headings = ["Boxes", "By kind", "IoU by area", "IoU by words", "IoU by aspect", "Failures", "Scores", "Worst 3"]
    assert [heading for heading in headings if heading not in page.text["h2"]] == []
    assert [row for row in ("prediction", "centre box", "whole image") if row not in page.text["th"]] == []
    assert len(page.sources) == 3 + 3 + 3  # charts, worst, best
    for source in page.sources:
        header, data = source.split(",")
        assert header in ("data:image/png;base64", "data:image/jpeg;base64")
        Image.open(io.BytesIO(b64decode(data))).verify()


def test_pictures_stand_before_tables_and_the_run_is_named_in_all_forms(folder: Path) -> None:
    page = Page(folder / "report.html")
    headings = page.text["h2"]
    assert (headings[0], headings[1]) == ("Worst 3", "Best 3")
    assert {"source", "given"} <= {*page.text["dt"], *page.text["dd"]}
    assert "- source: given" in (folder / "report.md").read_text()


def test_expressions_are_only_text(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert "script" not in page.tags
    assert any(WILD in caption for caption in page.text["figcaption"])


def test_files_say_the_same_as_the_figures(folder: Path, found: Results) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["run"] == {"name": "cups", "source": "given"}
    assert figures["summary"]["mean_iou"] == pytest.approx(0.5 / 3)
    assert "| mean_iou | 0.167 (" in (folder / "report.md").read_text()
    rows = list(csv.DictReader((folder / "records.csv").open()))
    assert [row["id"] for row in rows] == list("abcd")
    assert [row["iou"] for row in rows] == ["0.0", "0.5", "0.0", ""]
    assert [row["failure"] for row in rows] == ["wrong location", "", "no valid box", ""]
    assert rows[0]["expression"] == WILD


def test_run_can_be_scored_again(folder: Path, found: Results) -> None:
    assert list(read_records(folder / "records.jsonl")) == found.records
    assert read_predictions(folder / "predictions.jsonl") == list(filter(None, found.predictions))


@pytest.mark.parametrize("images", [None, Path("nowhere")], ids=["none", "missing"])
def test_without_images_the_report_says_so(found: Results, tmp_path: Path, images: Path | None) -> None:
    folder = write_report(tmp_path, {"name": "cups"}, analyse(found), found, images)
    page = Page(folder / "report.html")
    assert any("No pictures" in note for note in page.text["p"])
    assert len(page.sources) == 3
    assert "No pictures" in (folder / "report.md").read_text()


def test_points_alone_make_a_report(tmp_path: Path) -> None:
    found = results((record("a", None, points=((50, 50),)), {"points": ((50, 53),)}))
    folder = write_report(tmp_path, {"name": "points"}, analyse(found), found, None)
    text = (folder / "report.md").read_text()
    assert "| distance_px | 3.000 |" in text
    assert "| success | 1.000 | 0.901 |" in text  # here, and as point-vlm published it
    (row,) = csv.DictReader((folder / "records.csv").open())
    assert (row["true_points"], row["points"], row["point_f1"]) == ("[[50.0, 50.0]]", "[[50.0, 53.0]]", "1.0")


def test_a_row_of_boxes_has_no_points(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "records.csv").open()))
    assert {row[name] for row in rows for name in ("true_points", "points", "point_f1")} == {""}


def test_points_are_drawn(images: Path, tmp_path: Path) -> None:
    found = results(
        (record("a", None, points=((50, 50), (20, 20))), {"points": ((50, 50),)}),
        (record("b", None, points=((50, 50),)), {"points": ()}),
        (record("c", None), {"points": ((9, 9),)}),
    )
    page = Page(write_report(tmp_path, {"name": "points"}, analyse(found), found, images) / "report.html")
    captions = [text for text in page.text["figcaption"] if "F1" in text]
    assert [caption.split(": ")[1] for caption in captions] == ["F1 0.000", "F1 0.667", "F1 0.667", "F1 0.000"]


def test_picture_shows_both_boxes(images: Path, found: Results) -> None:
    shown = picture(found.records[1], {"found": found.boxes_xyxy[1]}, images, "caption")
    assert shown is not None
    drawn = Image.open(io.BytesIO(b64decode(shown.url.split(",")[1])))
    assert drawn.size == (320, 320)
    true, predicted, outside = (drawn.getpixel((x, 80)) for x in (96, 64, 200))  # right sides of BOX and HALF
    assert true != predicted
    assert all(value > 240 for value in outside)
    assert not all(value > 240 for value in true)
    assert not all(value > 240 for value in predicted)
    assert found.records[1].box_xyxy == BOX
