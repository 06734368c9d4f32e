"""What a batch found, as files that other programs read; and our own readers."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from referent.client.batch import BatchResult
from referent.client.coco import coco_of
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


@pytest.mark.parametrize("name", ["the \N{GRINNING FACE} cup", "tasse \N{LINE SEPARATOR} rouge", "yes", "1: a # b"])
def test_names_of_yolo_are_any_words(images: Path, tmp_path: Path, name: str) -> None:
    write_yolo([result(images / "a.jpg", box_answer(name, (10, 20, 50, 60), 0.9, True))], tmp_path)
    [found] = [item for item in read("yolo", tmp_path, tmp_path) if isinstance(item, Record) and item.present]
    assert " ".join(name.split()) in found.expression


def test_points_are_key_points_of_boxes_without_size(tmp_path: Path) -> None:
    write_yolo([result("a.jpg", points_answer("cup", (50, 20)))], tmp_path)
    assert (tmp_path / "labels/a.txt").read_text() == "0 0.5 0.25 0 0 0.5 0.25 2\n"
    assert "kpt_shape: [1, 3]" in (tmp_path / "data.yaml").read_text()


def test_two_images_never_share_their_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png would share the file .*a\.txt"):
        write_yolo([result("a.jpg", CUP), result("a.png", CUP)], tmp_path)


def test_pictures_have_all_answers_about_their_image(results: list[BatchResult], tmp_path: Path) -> None:
    by_url = result("https://example.org/c.jpg", CUP)
    assert write_pictures([*results, by_url], tmp_path / "drawn") == 2
    names = {str(file.relative_to(tmp_path / "drawn")) for file in (tmp_path / "drawn").rglob("*.jpg")}
    assert names == {"a.jpg", "below/b.png.jpg"}
    with Image.open(tmp_path / "drawn/a.jpg") as drawn:
        assert [drawn.getpixel(place) != (255, 255, 255) for place in ((10, 40), (4, 8))] == [True, True]


def test_no_picture_replaces_another_or_an_image(results: list[BatchResult], images: Path, tmp_path: Path) -> None:
    before = (images / "a.jpg").read_bytes()
    with pytest.raises(ValueError, match=r"the picture of .*a\.jpg would replace the image .*a\.jpg"):
        write_pictures(results, images)
    assert (images / "a.jpg").read_bytes() == before
    assert not list(images.rglob("*.png.jpg"))
    both = [result(tmp_path / name, CUP) for name in ("b.png", "b.png.jpg")]
    with pytest.raises(ValueError, match=r"b\.png and .*b\.png\.jpg would share the file"):
        write_pictures(both, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()


def test_labels_do_not_replace_another_data_set(results: list[BatchResult], tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [mine]\n")
    with pytest.raises(ValueError, match=r"data\.yaml is not of referent batch, and its labels would be lost"):
        write_yolo(results, tmp_path)
    assert not (tmp_path / "labels").exists()
    for _ in range(2):
        write_yolo(results, tmp_path / "own")


def test_what_was_asked_twice_of_an_image_counts_once(images: Path, tmp_path: Path) -> None:
    twice = [result(images / "a.jpg", CUP), result(images / "a.jpg", CUP, NO_DOG)]
    assert len(coco_of(twice)["annotations"]) == 1
    write_yolo(twice, tmp_path)
    assert len((tmp_path / "labels/a.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(("size", "said"), [((50, 40), r"it had 50x40 pixels, and now"), ((100, 80), "65500 pixels")])
def test_a_picture_that_cannot_be_drawn_costs_no_other(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], said: str
) -> None:
    wide = Image.new("RGB", (65510, 3), "white")
    if size == (100, 80):
        wide.save(images / "a.jpg", "PNG")
        size = wide.size
    found = [result(images / "a.jpg", CUP, size=size), result(images / "below/b.png", CUP)]
    with pytest.raises(ValueError, match=rf"1 pictures are in .*, 1 are not: .*a\.jpg: .*{said}"):
        write_pictures(found, tmp_path / "drawn")
    assert (tmp_path / "drawn/below/b.png.jpg").is_file()


def test_an_image_that_has_gone_costs_its_own_picture(results: list[BatchResult], images: Path, tmp_path: Path) -> None:
    (images / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 pictures are in .*, 1 are not: .*a\.jpg"):
        write_pictures(results, tmp_path / "drawn")
    assert (tmp_path / "drawn/below/b.png.jpg").is_file()


def test_urls_have_a_place_of_their_own(tmp_path: Path) -> None:
    paths = ("p/c.png", "p/d?x=1", "p/d?x=2", f"p/{'e' * 300}.png", "../../x")
    write_yolo([result(f"https://example.org/{path}", CUP) for path in paths], tmp_path)
    names = sorted(file.name for file in (tmp_path / "labels/example.org/p").iterdir())
    assert [name[:2] for name in names] == ["c.", "d-", "d-", "ee"]
    assert (tmp_path / "labels/example.org/x.txt").is_file()
