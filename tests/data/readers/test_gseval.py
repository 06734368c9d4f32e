import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from referent.core.boxes import iou
from referent.data.readers import read
from referent.data.records import Rejected

MASK = np.zeros((40, 60), np.uint8, order="F")
MASK[10:20, 5:25] = 1
COMPRESSED = coco.encode(MASK)["counts"].decode()
RUNS = [210, *[10, 30] * 19, 10, 1420]  # columns first: 5 empty ones and 10 pixels before the first run of the object
ROW = {
    "idx": 4, "image_path": "a/b.jpg", "class_id": 2, "label": "cup", "caption": "A cup.", "box": [5, 10, 25, 20],
    "segmentation": {"size": [40, 60], "counts": COMPRESSED},
}  # fmt: skip


def write(tmp_path: Path, counts: object) -> Path:
    file = tmp_path / "eval.jsonl"
    file.write_text(json.dumps(ROW | {"segmentation": {"size": [40, 60], "counts": counts}}))
    return file


@pytest.mark.parametrize("counts", [COMPRESSED, RUNS], ids=["compressed", "runs"])
def test_a_row_needs_no_image(tmp_path: Path, counts: object) -> None:
    (record,) = read("gseval", write(tmp_path, counts))
    assert (record.id, record.width, record.height, record.split) == ("4", 60, 40, "test")
    assert record.tags == {"class_id": "2", "label": "cup"}
    assert np.array_equal(coco.decode(record.mask.model_dump()), MASK)


@pytest.mark.parametrize("counts", ["ZZZZ", [10, 20], [5000]], ids=["garbage", "short", "long"])
def test_a_mask_that_does_not_fit_its_size_is_named(tmp_path: Path, counts: object) -> None:
    assert list(read("gseval", write(tmp_path, counts))) == [Rejected("mask does not fit its size", "eval.jsonl:1")]


def test_true_file_and_its_masks_agree_with_its_boxes(data_folder: Path) -> None:
    records = list(read("gseval", data_folder / "formats" / "gseval" / "GroundingSuite-Eval.jsonl"))
    assert [record.id for record in records] == [str(i) for i in range(3715)]
    masks = coco.toBbox([record.mask.model_dump() for record in records])
    masks[:, 2:] += masks[:, :2]
    overlap = iou(masks, np.array([record.box_xyxy for record in records]))
    assert overlap.mean() > 0.85  # the boxes were not made from the masks
