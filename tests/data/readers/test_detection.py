"""COCO, VOC and CSV files of the same scene say the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected

DOGS, CAT = [(10, 40, 30, 60), (90, 40, 110, 60), (150, 40, 170, 60)], (60, 5, 80, 20)
VOC = """<annotation><filename>wide.jpg</filename><size><width>200</width><height>100</height><depth>3</depth></size>
{}</annotation>"""
VOC_OBJECT = """<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""


def write(tmp_path: Path, format: str, things: list[tuple[str, tuple]], width: int = 200, height: int = 100) -> Path:
    names = ["bird", "cat", "dog"]
    if format == "coco":
        annotations = [
            {"id": i, "image_id": 1, "category_id": names.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for i, (name, (x1, y1, x2, y2)) in enumerate(things)
        ]
        image = {"id": 1, "file_name": "wide.jpg", "width": width, "height": height}
        content = {"images": [image], "annotations": annotations,
                   "categories": [{"id": i, "name": name} for i, name in enumerate(names)]}  # fmt: skip
        file = tmp_path / "instances_train2014.json"
        file.write_text(json.dumps(content))
        return file
    if format == "voc":
        folder = tmp_path / "Annotations"
        folder.mkdir()
        objects = [VOC_OBJECT.format(name, x1 + 1, y1 + 1, x2, y2) for name, (x1, y1, x2, y2) in things]
        (folder / "wide.xml").write_text(VOC.format("".join(objects)))
        (folder / "other.xml").write_text(VOC.replace("wide", "tall").format(VOC_OBJECT.format("bird", 1, 1, 9, 9)))
        return tmp_path
    file = tmp_path / "labels.csv"
    rows = [f"wide.jpg,{width},{height},{name},{','.join(map(str, box))}" for name, box in things]
    file.write_text("\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows]))
    return file


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


def test_a_crowd_makes_its_name_unusable(tmp_path: Path) -> None:
    file = write(tmp_path, "coco", [("dog", DOGS[0]), ("dog", DOGS[1]), ("cat", CAT)])
    content = json.loads(file.read_text())
    content["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    found = list(read("coco", file))
    assert found
    assert not any("dog" in item.expression for item in found)


def test_voc_corners_count_from_one_and_splits_are_those_of_the_lists(tmp_path: Path) -> None:
    folder = write(tmp_path, "voc", [("cat", (0, 0, 200, 100))])
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("wide\n")
    records = {item.image: item for item in read("voc", folder) if item.present}
    assert records["wide.jpg"].box_xyxy == (0, 0, 200, 100)
    assert (records["wide.jpg"].split, records["tall.jpg"].split) == ("val", "train")


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


def scene(annotations: list[object], categories: dict[int, object] | None = None) -> dict:
    """Twenty images, all with a dog, and what is annotated besides."""
    names = {1: "dog", 2: "cat", 3: "bird"} if categories is None else categories
    dogs = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 40, 30, 30]} for n in range(20)]
    birds = [{"id": 100 + n, "image_id": n, "category_id": 3, "bbox": [90, 40, 30, 30]} for n in range(0, 20, 2)]
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 200, "height": 100} for n in range(20)],
        "categories": [{"id": id, "name": name} for id, name in names.items()],
        "annotations": [*dogs, *birds, *annotations],
    }


def absent(items: list, *images: str) -> set[str]:
    """What is said not to be in the images, or in any."""
    records = [item for item in items if isinstance(item, Record) and not item.present]
    named = [record for record in records if not images or record.image in images]
    return {record.expression.removeprefix("find ").removeprefix("the ") for record in named}


COCO_CAT: dict = {"id": 900, "image_id": 7, "category_id": 2, "bbox": [60, 10, 30, 30]}


def without(name: str) -> Callable[[dict], object]:
    return lambda annotation: {key: value for key, value in annotation.items() if key != name}


def changed(**fields: object) -> Callable[[dict], object]:
    return lambda annotation: annotation | fields


UNREADABLE: dict[str, Callable[[dict], object]] = {
    "no bbox": without("bbox"),
    "bbox null": changed(bbox=None),
    "bbox empty": changed(bbox=[]),
    "bbox rotated": changed(bbox=[60, 10, 30, 30, 0.3]),
    "bbox of words": changed(bbox=["a", "b", "c", "d"]),
    "bbox of nothing": changed(bbox=[60, 10, 0, 0]),
    "no category": without("category_id"),
    "unknown category": changed(category_id=77),
    "category in words": changed(category_id="cat"),
    "no image": without("image_id"),
    "image null": changed(image_id=None),
    "a list": lambda annotation: [1, 2],
    "null": lambda annotation: None,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_annotation_that_cannot_be_read_is_never_an_absence(tmp_path: Path, kind: str) -> None:
    """Each image has a cat that cannot be read."""
    file = tmp_path / "a.json"
    cats = [UNREADABLE[kind](COCO_CAT | {"id": 900 + number, "image_id": number}) for number in range(20)]
    file.write_text(json.dumps(scene(cats)))
    found = list(read("coco", file))
    assert sum(isinstance(item, Rejected) for item in found) == 20
    assert len({item.image for item in found if isinstance(item, Record)}) == 20  # nothing else is lost
    assert "cat" not in absent(found)


@pytest.mark.parametrize("kind", ["no image", "image null", "a list"])
def test_what_may_be_in_any_image_is_absent_from_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(scene([UNREADABLE[kind](COCO_CAT)])))
    assert "cat" not in absent(list(read("coco", tmp_path / "a.json")))


def test_the_control_says_what_is_absent(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(scene([COCO_CAT])))
    found = list(read("coco", tmp_path / "a.json"))
    assert absent(found) == {"cat", "bird"}
    assert not any(isinstance(item, Rejected) for item in found)


@pytest.mark.parametrize(
    "fields", [{"image_id": "7"}, {"image_id": 7.0}, {"id": "7f3a"}, {"iscrowd": None}, {"category_id": "2"}]
)
def test_ids_may_be_written_in_several_ways(tmp_path: Path, fields: dict) -> None:
    (tmp_path / "a.json").write_text(json.dumps(scene([COCO_CAT | fields])))
    found = list(read("coco", tmp_path / "a.json"))
    assert not any(isinstance(item, Rejected) for item in found)
    assert "cat" not in absent(found, "7.jpg")
    assert any("cat" in item.expression and item.box_xyxy == (60, 10, 90, 40) for item in found)


@pytest.mark.parametrize("name", ["", "  ", None, 5, "gar\ufffdon", "a\u0000b"])
def test_a_category_without_a_readable_name_is_counted_and_said_of_nothing(tmp_path: Path, name: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(scene([COCO_CAT], {1: "dog", 2: name, 3: "bird"})))
    found = list(read("coco", tmp_path / "a.json"))
    counted = [item.reason for item in found if isinstance(item, Rejected)]
    assert len(counted) == 2  # the category and its annotation
    words = {item.expression for item in found if isinstance(item, Record)}
    assert not [text for text in words if text.split()[-1] in ("the", "of", "left", "right") or "\ufffd" in text]
    assert absent(found) == {"bird"}
    assert not absent(found, "7.jpg")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-40],
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"bbox": [60', '"area": NaN, "bbox": [60'),
        lambda text: text.replace('"annotations"', '"annotation"'),
        lambda text: text.replace('"bbox": [60', '"bbox": [60\ufffe\x01'),
    ],
    ids=["cut at the end", "cut in the middle", "NaN", "no annotations", "broken"],
)
def test_a_coco_file_that_cannot_be_read_to_its_end_stops_everything(
    tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    (tmp_path / "a.json").write_text(spoil(json.dumps(scene([COCO_CAT]))))
    with pytest.raises(AnnotationError, match=r"a\.json"):
        list(read("coco", tmp_path / "a.json"))


HEADING = "filename,width,height,class,xmin,ymin,xmax,ymax"


def csv_of(*rows: str, heading: str = HEADING, end: str = "\n") -> str:
    dogs = [f"{n}.jpg,200,100,dog,10,40,40,70" for n in range(20)]
    birds = [f"{n}.jpg,200,100,bird,90,40,120,70" for n in range(0, 20, 2)]
    return "\n".join([heading, *dogs, *birds, "1.jpg,200,100,cat,60,10,90,40", *rows]) + end


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
        "<object><name>cat</name></object>",
        VOC_OBJECT.format("", 1, 1, 9, 9),
        VOC_OBJECT.format("gar\ufffdon", 1, 1, 9, 9),
        "<object/>",
    ],
    ids=["no number", "no numbers", "no box", "no name", "another encoding", "nothing"],
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
