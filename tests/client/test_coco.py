"""A batch as COCO's layout, read again by pycocotools and by our own reader."""

import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from referent.client.batch import BatchResult
from referent.client.coco import coco_of, write_coco
from referent.core.answers import Answer
from referent.core.api import EXAMPLE
from referent.data.readers import read
from tests.support.answers import box_answer, points_answer
from tests.support.coco import average_precision


def result(image: str, *answers: Answer, size: tuple[int, int] = (100, 80)) -> BatchResult:
    answer = {**EXAMPLE, "image": {"width": size[0], "height": size[1]}, "results": answers}
    return BatchResult(image=image, expressions=[a.expression for a in answers], answer=answer)


BOXES = [
    result("a.jpg", box_answer("cup", (1, 2, 5, 10), 0.9, True), box_answer("dog", (0, 0, 9, 9), 0.1, False)),
    BatchResult(image="broken.jpg", expressions=("cup",), error="no image"),
    result("b.jpg", box_answer("dog", (2, 2, 4, 4), 0.8, True), size=(60, 40)),
    result("a.jpg", box_answer("hat", (3, 3, 30, 30))),
]
POINTS = [result("a.jpg", points_answer("cup", (5, 6), (20, 10), score=0.7), points_answer("dog")),
          result("b.jpg", points_answer("dog", (7, 8)))]  # fmt: skip


def test_boxes_are_read_by_our_own_reader_again(tmp_path: Path) -> None:
    assert write_coco(BOXES, tmp_path / "found.json") == 3
    records = [record for record in read("coco", tmp_path / "found.json") if record.present]
    found = {(record.image, record.tags["class"], record.box_xyxy) for record in records}
    assert found == {("a.jpg", "cup", (1, 2, 5, 10)), ("b.jpg", "dog", (2, 2, 4, 4)), ("a.jpg", "hat", (3, 3, 30, 30))}
    assert {record.image: (record.width, record.height) for record in records} == {
        "a.jpg": (100, 80),
        "b.jpg": (60, 40),
    }


@pytest.mark.parametrize("results", [BOXES, POINTS], ids=["boxes", "points"])
def test_pycocotools_reads_it(tmp_path: Path, results: list[BatchResult]) -> None:
    write_coco(results, tmp_path / "found.json")
    coco = COCO(str(tmp_path / "found.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.jpg", "b.jpg"]
    (dog,) = coco.getCatIds(catNms=["dog"])
    (found,) = coco.loadAnns(coco.getAnnIds(catIds=[dog]))
    assert coco.loadImgs([found["image_id"]])[0]["file_name"] == "b.jpg"
    coco.loadRes(coco.dataset["annotations"])


@pytest.mark.parametrize("results", [POINTS, [*BOXES[:1], *POINTS]], ids=["points", "boxes and points"])
def test_pycocotools_judges_its_keypoints(tmp_path: Path, results: list[BatchResult]) -> None:
    write_coco(results, tmp_path / "found.json")
    truth = COCO(str(tmp_path / "found.json"))
    found = [row | {"score": 1.0} for row in truth.dataset["annotations"] if row["num_keypoints"]]
    rows = [{key: value for key, value in row.items() if key != "bbox"} for row in found]
    assert average_precision(truth, rows, "keypoints") == pytest.approx(1)


def test_boxes_beside_points_have_no_keypoint() -> None:
    content = coco_of([*BOXES, result("c.jpg", points_answer("cup", (5, 6)), points_answer("dog", (7, 8)))])
    shown = {(a["num_keypoints"], tuple(a["keypoints"])) for a in content["annotations"] if a["bbox"][2]}
    assert shown == {(0, (0, 0, 0))}
    assert {c["name"]: "keypoints" in c for c in content["categories"]} == {"cup": True, "dog": True, "hat": False}
    assert not any("num_keypoints" in a for a in coco_of(BOXES)["annotations"])


def test_points_are_keypoints() -> None:
    content = coco_of(POINTS)
    assert [(a["image_id"], a["keypoints"], a.get("score")) for a in content["annotations"]] == [
        (1, [5, 6, 2], 0.7), (1, [20, 10, 2], 0.7), (2, [7, 8, 2], None),
    ]  # fmt: skip
    assert {c["name"]: c["keypoints"] for c in content["categories"]} == {"cup": ["point"], "dog": ["point"]}
    assert all((a["num_keypoints"], a["area"]) == (1, 0) for a in content["annotations"])


def test_a_score_that_is_not_there_is_left_out() -> None:
    assert ["score" in a for a in coco_of(BOXES)["annotations"]] == [True, True, False]


def test_nothing_found_is_a_data_set_without_annotations(tmp_path: Path) -> None:
    write_coco([result("a.jpg", points_answer("dog"))], tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert (len(content["images"]), len(content["categories"]), content["annotations"]) == (1, 1, [])
