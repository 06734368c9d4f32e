import json
from collections.abc import Callable
from pathlib import Path

import pytest

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected
from tests.support.detection_labels import CAT, COCO_CAT, DOGS, absent, scene, write


def test_a_crowd_makes_its_name_unusable(tmp_path: Path) -> None:
    file = write(tmp_path, "coco", [("dog", DOGS[0]), ("dog", DOGS[1]), ("cat", CAT)])
    content = json.loads(file.read_text())
    content["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    found = list(read("coco", file))
    assert found
    assert not any("dog" in item.expression for item in found)


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
    "unknown image": changed(image_id="p0.jpg"),
    "image of many digits": changed(image_id="9" * 5_000),
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


@pytest.mark.parametrize("kind", ["no image", "image null", "unknown image", "image of many digits", "a list"])
def test_what_may_be_in_any_image_is_absent_from_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(scene([UNREADABLE[kind](COCO_CAT)])))
    assert "cat" not in absent(list(read("coco", tmp_path / "a.json")))


def test_the_control_says_what_is_absent(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(scene([COCO_CAT])))
    found = list(read("coco", tmp_path / "a.json"))
    assert absent(found) == {"cat", "bird"}
    assert not any(isinstance(item, Rejected) for item in found)


def test_images_of_one_id_have_boxes_of_nobody_knows_which(tmp_path: Path) -> None:
    content = scene([COCO_CAT])
    content["images"] += [content["images"][7] | {"file_name": "b.jpg"}, content["images"][8]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = list(read("coco", tmp_path / "a.json"))
    assert [item for item in found if isinstance(item, Rejected)] == [
        Rejected("several images of one id", "a.json:images.21: id 7")
    ]
    assert {item.image for item in found if isinstance(item, Record)} == {f"{n}.jpg" for n in range(20) if n != 7}
    assert "cat" in absent(found)


def test_categories_of_one_id_are_no_names(tmp_path: Path) -> None:
    content = scene([COCO_CAT])
    content["categories"].append({"id": 2, "name": "plate"})
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = list(read("coco", tmp_path / "a.json"))
    assert [item.reason for item in found if isinstance(item, Rejected)] == [
        "several categories of one id", "unknown category"
    ]  # fmt: skip
    assert absent(found) == {"bird"}
    assert not absent(found, "7.jpg")


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
    ("spoil", "message"),
    [
        (lambda text: text[:-40], "EOF.* at line 2 column .*: is the file whole"),
        (lambda text: text[: len(text) // 2], "EOF.* at line 2 .*: is the file whole"),
        (lambda text: text.replace('"bbox": [60', '"area": NaN, "bbox": [60'), r"expected value at line 2 column \d+$"),
        (lambda text: text.replace('"bbox": [60', '"bbox": [60\ufffe\x01'), r"at line 2 column \d+$"),
        (lambda text: text[:-1] + ",}", "trailing comma at line 2"),
        (
            lambda text: text.replace('"id": 900', f'"id": {"9" * 26}'),
            "integer overflow: write numbers of over 18",
        ),
        (lambda text: text + text, "trailing characters at line 3 .*: name a file of JSON lines .jsonl"),
        (lambda text: text.replace('"annotations"', '"annotation"'), "has no annotations"),
    ],
    ids=["cut at the end", "cut in the middle", "NaN", "broken", "comma", "many digits", "lines", "no annotations"],
)
def test_a_coco_file_that_cannot_be_read_to_its_end_stops_with_the_line_and_the_reason(
    tmp_path: Path, spoil: Callable[[str], str], message: str
) -> None:
    (tmp_path / "a.json").write_text(spoil("\n" + json.dumps(scene([COCO_CAT]))))
    with pytest.raises(AnnotationError, match=rf"a\.json.*{message}"):
        list(read("coco", tmp_path / "a.json"))


def test_a_coco_file_of_another_encoding_stops_with_the_line_and_the_remedy(tmp_path: Path) -> None:
    names = {1: "dog", 2: "caf\u00e9", 3: "bird"}
    text = json.dumps(scene([COCO_CAT], names), ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(b"\n" + text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"a\.json:2: not UTF-8 text .*: save the file as UTF-8"):
        list(read("coco", tmp_path / "a.json"))
