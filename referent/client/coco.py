"""What a batch found, as one data set in COCO's layout, for labelling tools and pycocotools."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from referent.client.batch import BatchResult, without_repeats
from referent.client.results import Grounding
from referent.core.files import atomic

NO_KEYPOINT = {"keypoints": [0, 0, 0], "num_keypoints": 0}


def coco_of(results: Iterable[BatchResult]) -> dict[str, Any]:
    """`images`, `categories` and `annotations`: a category for each expression, an annotation for each referent.

    `bbox` is x, y, width, height in pixels. A point is `keypoints` x, y, 2 of a category with the one keypoint `point`;
    its `bbox` has no area. Beside points, boxes have `num_keypoints` 0, as pycocotools needs. `score` is there if the
    model gives one. Images whose line is an error are left out; those in which nothing was found have no annotation.
    """
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for result in without_repeats(results):
        if result.answer is None:
            continue
        size = {"width": result.answer.image.width, "height": result.answer.image.height}
        image = images.setdefault(result.image, {"id": len(images) + 1, "file_name": result.image, **size})
        for found in Grounding.model_validate(result.answer.model_dump()).to_coco(image["id"], categories):
            row = {"id": len(annotations) + 1, **found, "iscrowd": 0}
            if "keypoints" in found:
                row |= {"num_keypoints": 1, "bbox": [*found["keypoints"][:2], 0.0, 0.0]}
            annotations.append(row | {"area": row["bbox"][2] * row["bbox"][3]})
    pointed = {row["category_id"] for row in annotations if "keypoints" in row}
    if pointed:
        annotations = [NO_KEYPOINT | row for row in annotations]
    return {
        "images": list(images.values()),
        "categories": [
            {"id": number, "name": name} | ({"keypoints": ["point"], "skeleton": []} if number in pointed else {})
            for name, number in categories.items()
        ],
        "annotations": annotations,
    }


def write_coco(results: Iterable[BatchResult], file: Path) -> int:
    """Writes `coco_of` to the file, whole or not at all; returns the number of annotations. Raises OSError."""
    content = coco_of(results)
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return len(content["annotations"])
