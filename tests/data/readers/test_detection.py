"""COCO, VOC and CSV files of the same scene say the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected
from tests.support.detection_labels import CAT, COCO_CAT, DOGS, HEADING, VOC, VOC_OBJECT, absent, csv_of, scene, write


def said(items: list) -> dict[str, tuple | None]:
    return {item.expression.removeprefix("find ").removeprefix("the "): item.box_xyxy for item in items}


@pytest.mark.parametrize("format", ["coco", "voc", "csv"])
def test_labels_become_expressions_with_their_boxes(tmp_path: Path, format: str) -> None:
    things = [*(("dog", box) for box in DOGS), ("cat", CAT)]
    found = [item for item in read(format, write(tmp_path, format, things)) if item.image == "wide.jpg"]
    texts = said([item for item in found if item.present])
    assert 1 <= len(found) <= 8
    assert all(box == CAT for text, box in texts.items() if text == "cat")
    assert all(box in DOGS for text, box in texts.items() if text.split()[0] != "cat" and "dog" in text.split()[:2])
    assert not any(text == "dog" for text in texts)
    assert all(item.tags.keys() >= {"kind"} for item in found)


@pytest.mark.parametrize("format", ["coco", "voc", "csv"])
def test_the_same_file_says_the_same_twice(tmp_path: Path, format: str) -> None:
    file = write(tmp_path, format, [("dog", DOGS[0]), ("dog", DOGS[1]), ("cat", CAT)])
    assert list(read(format, file)) == list(read(format, file))


def test_labels_made_at_another_size_are_scaled_to_the_file(tmp_path: Path, images: Path) -> None:
    file = write(tmp_path, "csv", [("cat", (20, 10, 40, 30))], width=400, height=200)
    record = next(iter(read("csv", file, images)))
    assert (record.width, record.height, record.box_xyxy) == (200, 100, (10, 5, 20, 15))


def test_labels_of_other_proportions_are_refused(tmp_path: Path, images: Path) -> None:
    file = write(tmp_path, "csv", [("cat", (20, 10, 40, 30))], width=100, height=200)
    assert list(read("csv", file, images)) == [Rejected("image size differs from the annotation", "wide.jpg")]


def test_a_name_with_a_broken_box_is_not_used_in_its_image(tmp_path: Path) -> None:
    file = write(tmp_path, "csv", [("dog", DOGS[0]), ("dog", (50, 50, 50, 60)), ("cat", CAT)])
    broken, *rest = read("csv", file)
    assert broken == Rejected("box has no area", "wide.jpg: object 2")
    assert rest
    assert not any("dog" in item.expression for item in rest)


def test_voc_corners_count_from_one_and_splits_are_those_of_the_lists(tmp_path: Path) -> None:
    folder = write(tmp_path, "voc", [("cat", (0, 0, 200, 100))])
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("wide\n")
    records = {item.image: item for item in read("voc", folder) if item.present}
    assert records["wide.jpg"].box_xyxy == (0, 0, 200, 100)
    assert (records["wide.jpg"].split, records["tall.jpg"].split) == ("val", "train")


def test_voc_corners_from_zero_and_names_in_capitals_are_read(tmp_path: Path) -> None:
    tiny = VOC.replace(">200<", ">9<").replace(">100<", ">9<").format(VOC_OBJECT.format("cat", 0, 0, 8, 8))
    (tmp_path / "a.XML").write_text(tiny)
    (record,) = read("voc", tmp_path)
    assert record.box_xyxy == (0, 0, 8, 8)


def test_names_in_lists_of_voc_may_have_spaces(tmp_path: Path) -> None:
    folder = write(tmp_path, "voc", [("cat", CAT)])
    (folder / "Annotations/wide.xml").rename(folder / "Annotations/my photo.xml")
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text(" my photo \r\n")
    assert {item.split for item in read("voc", folder) if item.image == "wide.jpg"} == {"val"}


def test_a_voc_file_that_is_cut_off_is_no_image(tmp_path: Path) -> None:
    folder = write(tmp_path, "voc", [("dog", DOGS[0]), ("cat", CAT)])
    file = folder / "Annotations/wide.xml"
    file.write_text(file.read_text()[:-60])
    rejected, *rest = read("voc", folder)
    assert rejected == Rejected("wrong schema: xml", "wide.xml")
    assert {item.image for item in rest} == {"tall.jpg"}


def test_files_that_are_no_annotations_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "voc", [("cat", CAT)])
    (folder / "Annotations" / "a.xml").write_text("<annotation>")
    (folder / "Annotations" / "b.xml").write_text("<annotation/>")
    (folder / "Annotations" / "c.xml").write_text("<?xml version='1.0' encoding='none'?><a/>")
    rejected = [item for item in read("voc", folder) if isinstance(item, Rejected)]
    assert rejected == [
        Rejected("wrong schema: xml", "a.xml"),
        Rejected("wrong schema: filename", "b.xml"),
        Rejected("wrong schema: xml", "c.xml"),
    ]


def in_two_entries(tmp_path: Path, format: str, width: int = 200) -> Path:
    """Each image has a dog in its first entry and a cat, labelled at a size of `width` x 100, in its second."""
    cat = VOC.replace(">200<", f">{width}<").format(VOC_OBJECT.format("cat", 61, 11, 90, 40))
    if format == "coco":
        content = scene([COCO_CAT | {"id": 900 + n, "image_id": 100 + n} for n in range(20)])
        again = [{"id": 100 + n, "file_name": f"{n}.jpg", "width": width, "height": 100} for n in range(20)]
        content["images"] += again
        (tmp_path / "a.json").write_text(json.dumps(content))
        return tmp_path / "a.json"
    if format == "csv":
        (tmp_path / "a.csv").write_text(csv_of(*(f"{n}.jpg,{width},100,cat,60,10,90,40" for n in range(20))))
        return tmp_path / "a.csv"
    for n in range(20):
        (tmp_path / f"{n}.xml").write_text(VOC.replace("wide", str(n)).format(VOC_OBJECT.format("dog", 10, 40, 40, 70)))
        (tmp_path / f"{n}_again.xml").write_text(cat.replace("wide", str(n)))
    return tmp_path


@pytest.mark.parametrize("format", ["coco", "voc", "csv"])
def test_entries_of_one_image_are_one_image(tmp_path: Path, format: str) -> None:
    found = list(read(format, in_two_entries(tmp_path, format)))
    assert "cat" not in absent(found)
    assert any(item.expression.endswith("cat") and item.box_xyxy == (60, 10, 90, 40) for item in found)
    assert len({item.id for item in found}) == len(found)


@pytest.mark.parametrize("format", ["coco", "voc", "csv"])
def test_an_entry_of_another_size_is_rejected_and_its_objects_are_no_absence(tmp_path: Path, format: str) -> None:
    found = list(read(format, in_two_entries(tmp_path, format, width=100)))
    rejected = [item.reason for item in found if isinstance(item, Rejected)]
    assert rejected == ["image size differs from an earlier entry of the image"] * len(rejected)
    assert len(rejected) >= 20
    assert not any("cat" in item.expression for item in found if isinstance(item, Record))


@pytest.mark.parametrize("format", ["coco", "csv"])
def test_boxes_in_shares_of_the_image_are_not_pixels(tmp_path: Path, format: str) -> None:
    rejected, *rest = read(format, write(tmp_path, format, [("dog", (0.1, 0.2, 0.5, 0.9)), ("cat", CAT)]))
    assert rejected.reason == "box in shares of the image, where pixels are expected"
    assert not any("dog" in item.expression for item in rest)


@pytest.mark.parametrize(
    "row",
    [
        "7.jpg,200,100,cat,60,10,,40",
        "7.jpg,200,100,cat,60,10,wide,40",
        "7.jpg,200,100,cat,60,10,60,40",
        "7.jpg,200,100,cat,60",
        "7.jpg,200,100,,60,10,90,40",
        "7.jpg,200,100,c\ufffdt,60,10,90,40",
        "7.jpg,200,100,cat,60,10,90,40,5",
        ",200,100,cat,60,10,90,40",
        "\ufffd.jpg,200,100,cat,60,10,90,40",
    ],
)
def test_a_csv_row_that_cannot_be_read_is_never_an_absence(tmp_path: Path, row: str) -> None:
    """Each image has a cat whose row cannot be read."""
    (tmp_path / "a.csv").write_text(csv_of(*(row.replace("7.jpg", f"{number}.jpg") for number in range(20))))
    found = list(read("csv", tmp_path / "a.csv"))
    assert sum(isinstance(item, Rejected) for item in found) == 20
    assert "cat" not in absent(found)
    assert len({item.image for item in found if isinstance(item, Record)}) == 20
    assert not any("\ufffd" in item.expression for item in found if isinstance(item, Record))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace(",", ", ").encode(),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace("\n", "\r\n\r\n").encode(),
        lambda text: text.replace("\n", ",,\n").encode(),
        lambda text: text.replace("filename", " FileName ").encode(),
    ],
    ids=["mark of UTF-8", "UTF-16", "spaces", "semicolons", "blank lines", "empty cells", "odd heading"],
)
def test_csv_as_spreadsheets_write_it_says_the_same(tmp_path: Path, change: Callable[[str], bytes]) -> None:
    (tmp_path / "a.csv").write_text(csv_of())
    expected = list(read("csv", tmp_path / "a.csv"))
    assert "cat" in absent(expected)
    (tmp_path / "a.csv").write_bytes(change(csv_of()))
    assert list(read("csv", tmp_path / "a.csv")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (csv_of("7.jpg,200,100,cat,60", end=""), r"a\.csv:33 is cut off"),
        (csv_of("7.jpg,200,100,cat,60,10,90,", end=""), r"a\.csv:33 is cut off"),
        (csv_of(heading=f"{HEADING},class"), "a.csv:1: column class occurs twice: keep one"),
        (csv_of('7.jpg,200,100,"cat,60'), r"a\.csv:33: .*quotation mark"),
        (csv_of(heading="file,width,height,label,xmin,ymin,xmax,ymax"), "a.csv:1: no column filename, class: .*xmin"),
        ("", "a.csv:1: no column filename"),
    ],
)
def test_a_csv_file_that_cannot_be_used_stops_everything(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        list(read("csv", tmp_path / "a.csv"))


def test_another_encoding_loses_its_own_labels_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_of("7.jpg,200,100,garçon,60,10,90,40").encode("latin-1"))
    found = list(read("csv", tmp_path / "a.csv"))
    assert [item for item in found if isinstance(item, Rejected)] == [
        Rejected("label without a name that can be read", "a.csv:33")
    ]
    assert not absent(found, "7.jpg")


@pytest.mark.parametrize(
    "odd",
    [
        VOC_OBJECT.format("cat", "", 1, 9, 9),
        VOC_OBJECT.format("cat", "nan", 1, "wide", 9),
        VOC_OBJECT.format("cat", "nan", 1, 9, 9),
        VOC_OBJECT.format("cat", "-inf", 1, 9, 9),
        VOC_OBJECT.format("cat", -500, 1, 9, 9),
        "<object><name>cat</name></object>",
        VOC_OBJECT.format("", 1, 1, 9, 9),
        VOC_OBJECT.format("gar\ufffdon", 1, 1, 9, 9),
        "<object/>",
    ],
    ids=[
        "no number",
        "no numbers",
        "not a number",
        "infinite",
        "far outside",
        "no box",
        "no name",
        "another encoding",
        "nothing",
    ],
)
def test_a_voc_object_that_cannot_be_read_is_never_an_absence(tmp_path: Path, odd: str) -> None:
    dog, cat = VOC_OBJECT.format("dog", 10, 40, 40, 70), VOC_OBJECT.format("cat", 60, 10, 90, 40)
    for more, spoilt in ((odd, 30), ("", 0)):
        for number in range(30):
            content = VOC.replace("wide", str(number)).format(dog + more)
            (tmp_path / f"{number}.xml").write_text(content)
        (tmp_path / "cat.xml").write_text(VOC.replace("wide", "cat").format(cat))
        found = list(read("voc", tmp_path))
        assert sum(isinstance(item, Rejected) for item in found) == spoilt
        assert len({item.image for item in found if isinstance(item, Record)}) == 31
        assert ("cat" in absent(found)) is (spoilt == 0)


def test_true_labels_of_the_cards(data_folder: Path) -> None:
    cards = data_folder / "cards"
    items = list(read("csv", cards / "labels.csv", cards / "images"))
    records = [item for item in items if isinstance(item, Record)]
    assert [item.reason for item in items if isinstance(item, Rejected)] == ["nothing unambiguous to say"]
    assert len({record.image for record in records}) == 295
    with Image.open(cards / "images" / records[0].image) as image:
        assert image.size == (records[0].width, records[0].height)
    assert {"name", "position", "relation", "size", "absent"} <= {record.tags["kind"] for record in records}
