"""Exports of Label Studio: JSON and JSON-MIN."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from referent.data.readers import AnnotationError, read
from referent.data.records import Record, Rejected

CUP_BOX = (20, 10, 60, 50)  # pixels of 200 x 100


def region(name: str = "cup", kind: str = "rectanglelabels", number: str = "r1", **value: object) -> dict:
    shape = {"x": 10, "y": 10, "width": 20, "height": 40, "rotation": 0} if kind == "rectanglelabels" else {}
    return {
        "id": number, "type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0,
        "original_width": 200, "original_height": 100, "value": {**shape, kind: [name], **value},
    }  # fmt: skip


def task(*regions: object, image: str = "/data/upload/1/0a1b2c3d-wide.jpg", **annotation: object) -> dict:
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 5, "result": [*regions], **annotation}]}


PLATE = region("plate", x=50, number="r2")


def found(folder: Path, *tasks: object, images: Path | None = None) -> list[Record | Rejected]:
    (folder / "export.json").write_text(json.dumps(tasks))
    return list(read("label-studio", folder / "export.json", images))


def records(items: list[Record | Rejected]) -> list[Record]:
    return [item for item in items if isinstance(item, Record)]


def boxes(items: list[Record | Rejected], name: str) -> set[tuple | None]:
    named = [item for item in records(items) if item.expression.split()[-1] == name and item.present]
    return {tuple(round(number, 3) for number in item.box_xyxy) for item in named}


def absent(items: list[Record | Rejected]) -> set[str]:
    return {item.expression.split()[-1] for item in records(items) if not item.present}


def test_percent_become_pixels(tmp_path: Path) -> None:
    (one,) = found(tmp_path, task(region()))
    assert (one.image, one.width, one.height, one.box_xyxy) == ("wide.jpg", 200, 100, CUP_BOX)


def test_json_min_says_the_same(tmp_path: Path) -> None:
    flat = {"id": 1, "annotation_id": 5, "image": "/data/upload/1/0a1b2c3d-wide.jpg"}
    drawn = region()["value"] | {"original_width": 200, "original_height": 100}
    assert found(tmp_path, flat | {"label": [drawn]}) == found(tmp_path, task(region()))


SHAPES = {
    "polygon": region(kind="polygonlabels", points=[[10, 10], [30, 30], [20, 50]]),
    "ellipse": region(kind="ellipselabels", x=20, y=30, radiusX=10, radiusY=20, rotation=0),
    "turned about its corner": region(x=30, y=10, width=20, height=20, rotation=90),  # 20 % are 40 or 20 pixels
    "turned by little": region(x=10, y=10, width=20, height=40, rotation=1e-9),
    "labels apart from the shape": region() | {"type": "rectangle"},
}
SHAPES["labels apart from the shape"]["value"]["labels"] = ["cup"]
SHAPES["labels with the shape"] = SHAPES["labels apart from the shape"] | {"type": "labels"}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_give_the_box_around_them(tmp_path: Path, shape: str) -> None:
    expected = (40, 10, 60, 50) if shape == "turned about its corner" else CUP_BOX
    assert boxes(found(tmp_path, task(SHAPES[shape])), "cup") == {expected}


BARE = {key: value for key, value in region()["value"].items() if key != "rectanglelabels"}


@pytest.mark.parametrize("repeated", [BARE, {}], ids=["shape in both", "shape in one"])
def test_labels_and_shape_may_be_two_results_of_a_region(tmp_path: Path, repeated: dict) -> None:
    shape = region() | {"type": "rectangle", "value": BARE}
    named = region() | {"type": "labels", "value": repeated | {"labels": ["cup"]}}
    items = found(tmp_path, task(shape, named))
    assert boxes(items, "cup") == {CUP_BOX}
    assert len(items) == 1


def test_labels_and_shape_may_be_two_results_in_json_min(tmp_path: Path) -> None:
    size = {"original_width": 200, "original_height": 100}
    flat = {
        "id": 1,
        "annotation_id": 5,
        "image": "a.jpg",
        "rect": [BARE | size],
        "label": [BARE | size | {"labels": ["cup"]}],
    }
    items = found(tmp_path, flat)
    assert boxes(items, "cup") == {CUP_BOX}
    assert len(items) == 1


@pytest.mark.parametrize("size", [("200", "100"), (200.0, 100.0)])
@pytest.mark.parametrize("rotation", [0, 1e-9])
def test_sizes_may_be_text_or_have_a_point(tmp_path: Path, size: tuple, rotation: float) -> None:
    said = region(rotation=rotation) | {"original_width": size[0], "original_height": size[1]}
    assert boxes(found(tmp_path, task(said)), "cup") == {CUP_BOX}


def test_tasks_of_one_image_are_one(tmp_path: Path) -> None:
    pairs = [[task(region(), image=f"{n}.jpg"), task(PLATE, image=f"{n}.jpg")] for n in range(20)]
    items = found(tmp_path, *(each for pair in pairs for each in pair))
    assert not absent(items)
    assert len({item.id for item in records(items)}) == len(items)


@pytest.mark.parametrize("given", [True, False])
def test_images_that_share_the_name_of_a_file_are_left_out(tmp_path: Path, images: Path, given: bool) -> None:
    names = ["/data/upload/1/11111111-wide.jpg", "/data/upload/2/22222222-wide.jpg", "/data/upload/2/22222222-tall.jpg"]
    items = found(tmp_path, *(task(region(), image=name) for name in names), images=images if given else None)
    assert [item.reason for item in items if isinstance(item, Rejected)] == [
        "several images of Label Studio have the name of this file"
    ] * 2
    assert {item.image for item in records(items)} == {"tall.jpg"}


@pytest.mark.parametrize(
    ("targets", "images"),
    [(["image"], {"a.jpg"}), (["image2"], {"b.jpg"}), (["image", "image2"], set()), (["picture"], set())],
)
def test_of_a_task_with_several_images_the_one_that_was_drawn_on_counts(
    tmp_path: Path, targets: list[str], images: set[str]
) -> None:
    drawn = task(*(region(number=target) | {"to_name": target} for target in targets))
    drawn["data"] = {"image": "a.jpg", "image2": "b.jpg"}
    items = found(tmp_path, drawn)
    assert {item.image for item in records(items)} == images
    assert [item.reason for item in items if isinstance(item, Rejected)] == ["task with several images"] * (not images)


def test_what_annotators_wrote_of_a_region_is_an_expression(tmp_path: Path) -> None:
    words = {"id": "r1", "type": "textarea", "from_name": "words", "value": {"text": ["the chipped cup", "my cup"]}}
    written = [item for item in found(tmp_path, task(region(), words)) if item.tags["kind"] == "written"]
    assert [(item.expression, item.box_xyxy) for item in written] == [("the chipped cup", CUP_BOX), ("my cup", CUP_BOX)]
    unnamed = {key: value for key, value in region().items() if key != "type"} | {"type": "rectangle"}
    unnamed["value"] = {"x": 10, "y": 10, "width": 20, "height": 40}
    assert [item.expression for item in records(found(tmp_path, task(unnamed, words)))] == ["the chipped cup", "my cup"]


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("/data/upload/1/0a1b2c3d-wide.jpg", "wide.jpg"),
        ("/data/local-files/?d=below/wide%20one.jpg", "below/wide one.jpg"),
        ("https://example.org/photos/wide.jpg?x=1", "wide.jpg"),
        ("s3://bucket/below/wide%20one.jpg", "below/wide one.jpg"),
        ("wide.jpg", "wide.jpg"),
    ],
)
def test_files_are_found_by_what_label_studio_calls_them(tmp_path: Path, images: Path, image: str, file: str) -> None:
    (images / "below").mkdir()
    (images / "below/wide one.jpg").write_bytes((images / "wide.jpg").read_bytes())
    (one,) = found(tmp_path, task(region(), image=image), images=images)
    assert one.image == file


def test_of_several_annotations_the_true_one_counts_or_else_the_last(tmp_path: Path) -> None:
    several = task()
    several["annotations"] = [
        {"result": [region(x=50)], "ground_truth": True},
        {"result": [region()]},
        {"result": [region(x=0)], "was_cancelled": True},
    ]
    assert boxes(found(tmp_path, several), "cup") == {(100, 10, 140, 50)}
    several["annotations"][0]["ground_truth"] = False
    assert boxes(found(tmp_path, several), "cup") == {CUP_BOX}


@pytest.mark.parametrize("annotations", [[], [{"was_cancelled": True, "result": []}], None, "none", [5]])
def test_a_task_that_nobody_has_done_says_nothing(tmp_path: Path, annotations: object) -> None:
    undone = [task(region()) | {"annotations": annotations} for _ in range(20)]
    items = found(tmp_path, task(region(), PLATE), *undone)
    assert sum(isinstance(item, Rejected) for item in items) == 20
    assert not absent(items)


def test_the_control_says_what_is_absent(tmp_path: Path) -> None:
    tasks = [task(region(), image=f"{number}.jpg") for number in range(20)]
    assert absent(found(tmp_path, task(region(), PLATE), *tasks)) == {"plate"}


UNREADABLE: dict[str, Callable[[], object]] = {
    "no shape": lambda: PLATE | {"value": None},
    "no number": lambda: region("plate", x="left"),
    "no x": lambda: PLATE | {"value": {"width": 20, "height": 40, "rectanglelabels": ["plate"]}},
    "an ellipse without x": lambda: region("plate", "ellipselabels", y=5, radiusX=5, radiusY=5),
    "infinite": lambda: region("plate", x="inf"),
    "infinite rotation": lambda: region("plate", rotation="inf"),
    "no corners": lambda: region("plate", "polygonlabels", points=[]),
    "a corner that is no number": lambda: region("plate", "polygonlabels", points=[[1, 1], [9, 1], ["nan", 9]]),
    "a list for a type": lambda: PLATE | {"type": ["rectanglelabels"]},
    "labels alone": lambda: region("plate", "labels"),
    "turned without a size": lambda: region("plate", rotation=5) | {"original_width": "wide"},
    "no area": lambda: region("plate", width=0),
    "outside": lambda: region("plate", x=500),
    "a brush": lambda: region("plate", "brushlabels", rle=[1, 2]),
    "a key point": lambda: region("plate", "keypointlabels", x=5, y=5),
    "no name": lambda: region(""),
    "lost letters": lambda: region("pl\ufffdte"),
    "a number for a name": lambda: region(5),  # type: ignore[arg-type]
    "no labels": lambda: region() | {"value": {"x": 10, "y": 10, "width": 20, "height": 40}},
    "turned image": lambda: PLATE | {"image_rotation": 90},
    "text": lambda: "plate",
    "null": lambda: None,
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_label_that_cannot_be_read_is_never_an_absence(tmp_path: Path, kind: str) -> None:
    odd = UNREADABLE[kind]()
    if isinstance(odd, dict):
        odd = odd | {"id": "odd"}
    items = found(tmp_path, task(PLATE), *[task(region(), odd, image=f"{number}.jpg") for number in range(20)])
    assert sum(isinstance(item, Rejected) for item in items) >= 20
    assert "plate" not in absent(items)
    assert len({item.image for item in records(items)}) == 21


@pytest.mark.parametrize(
    "odd", [None, 3, "text", [], {}, {"data": 5}, {"data": {}}, {"data": {"image": 5}, "annotations": []}]
)
def test_tasks_of_any_shape_are_counted_and_the_rest_read(tmp_path: Path, odd: object) -> None:
    items = found(tmp_path, task(region(), image="a.jpg"), odd, task(region(), image="b.jpg"))
    assert [isinstance(item, Rejected) for item in items] == [True, False, False]


@pytest.mark.parametrize("text", ["[]", "{}", "", '[{"id": 1'])
def test_what_is_no_export_stops(tmp_path: Path, text: str) -> None:
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"export\.json"):
        list(read("label-studio", tmp_path / "export.json"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_cost_nothing(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "export.json").write_bytes(json.dumps([task(region())]).encode(encoding))
    assert len(records(list(read("label-studio", tmp_path / "export.json")))) == 1
