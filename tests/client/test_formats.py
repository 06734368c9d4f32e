"""What a batch found, as files that other programs read; and our own readers."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from referent.client.batch import BatchResult
from referent.client.formats import write_csv, write_pictures, write_yolo
from referent.core.answers import Answer
from referent.core.api import EXAMPLE
from referent.data.readers import read
from referent.data.records import Record
from tests.support.answers import box_answer, points_answer


def result(image: object, *answers: Answer, size: tuple[int, int] = (100, 80)) -> BatchResult:
    answer = {**EXAMPLE, "image": {"width": size[0], "height": size[1]}, "results": answers}
    return BatchResult(image=str(image), expressions=[a.expression for a in answers], answer=answer)


CUP, NO_DOG = box_answer("cup", (10, 20, 50, 60), 0.9, True), points_answer("dog", score=0.1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a.jpg", "below/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80), "white").save(folder / name)
    return folder


@pytest.fixture
def results(images: Path) -> list[BatchResult]:
    return [
        result(images / "a.jpg", CUP, NO_DOG),
        BatchResult(image="broken.jpg", expressions=("cup",), error="no image, at all"),
        result(images / "below/b.png", NO_DOG),
        result(images / "a.jpg", box_answer('a "hat", red', (0, 0, 9.5, 8), 0.8, True)),
    ]


def test_a_table_has_a_row_for_each_referent_absence_and_error(results: list[BatchResult], tmp_path: Path) -> None:
    assert write_csv(results, tmp_path / "out.csv") == 5
    with (tmp_path / "out.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    shown = [(Path(r["image"]).name, r["expression"], r["present"], r["score"], r["x1"], r["y2"]) for r in rows]
    assert shown == [
        ("a.jpg", "cup", "yes", "0.9", "10.0", "60.0"),
        ("a.jpg", "dog", "no", "0.1", "", ""),
        ("broken.jpg", "", "", "", "", ""),
        ("b.png", "dog", "no", "0.1", "", ""),
        ("a.jpg", 'a "hat", red', "yes", "0.8", "0.0", "8.0"),
    ]
    assert [r["error"] for r in rows if r["error"]] == ["no image, at all"]


def test_labels_of_yolo_are_read_again(results: list[BatchResult], images: Path, tmp_path: Path) -> None:
    assert write_yolo(results, tmp_path / "labels") == 2
    (tmp_path / "labels/images").symlink_to(images)
    found = [item for item in read("yolo", tmp_path / "labels", tmp_path / "labels") if isinstance(item, Record)]
    boxes = {
        item.expression.removeprefix("find ").removeprefix("the "): item.box_xyxy for item in found if item.present
    }
    assert boxes["cup"] == pytest.approx((10, 20, 50, 60), abs=1e-3)
    assert (tmp_path / "labels/labels/below/b.txt").read_text() == ""
    assert (tmp_path / "labels/data.yaml").read_text().splitlines()[-3:] == [
        '  0: "cup"', '  1: "dog"', r'  2: "a \"hat\", red"',
    ]  # fmt: skip


def test_points_are_key_points_of_boxes_without_size(tmp_path: Path) -> None:
    write_yolo([result("a.jpg", points_answer("cup", (50, 20)))], tmp_path)
    assert (tmp_path / "labels/a.txt").read_text() == "0 0.5 0.25 0 0 0.5 0.25 2\n"
    assert "kpt_shape: [1, 3]" in (tmp_path / "data.yaml").read_text()


def test_two_images_never_share_their_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png would share the labels .*a\.txt"):
        write_yolo([result("a.jpg", CUP), result("a.png", CUP)], tmp_path)


def test_pictures_have_all_answers_about_their_image(results: list[BatchResult], tmp_path: Path) -> None:
    by_url = result("https://example.org/c.jpg", CUP)
    assert write_pictures([*results, by_url], tmp_path / "drawn") == 2
    names = {str(file.relative_to(tmp_path / "drawn")) for file in (tmp_path / "drawn").rglob("*.jpg")}
    assert names == {"a.jpg", "below/b.png.jpg"}
    with Image.open(tmp_path / "drawn/a.jpg") as drawn:
        assert [drawn.getpixel(place) != (255, 255, 255) for place in ((10, 40), (4, 8))] == [True, True]


def test_an_image_that_has_gone_costs_its_own_picture(results: list[BatchResult], images: Path, tmp_path: Path) -> None:
    (images / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 pictures are in .*, 1 images can't be read any more"):
        write_pictures(results, tmp_path / "drawn")
    assert (tmp_path / "drawn/below/b.png.jpg").is_file()


@pytest.mark.parametrize("url", ["https://example.org/p/c.png?x=1", "http://example.org/p/c.png"])
def test_urls_have_a_place_of_their_own(tmp_path: Path, url: str) -> None:
    write_yolo([result(url, CUP)], tmp_path)
    assert (tmp_path / "labels/example.org/p/c.txt").is_file()
    write_yolo([result("https://example.org/../../x", CUP)], tmp_path)
    assert (tmp_path / "labels/example.org/x.txt").is_file()
