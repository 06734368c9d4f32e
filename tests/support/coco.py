"""pycocotools' own judgement of results."""

from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def average_precision(truth: COCO, rows: list[dict[str, Any]], kind: Literal["bbox", "keypoints"]) -> float:
    """At an IoU or OKS of .5 to .95; an object has one keypoint."""
    judge = COCOeval(truth, truth.loadRes(rows), kind)
    judge.params.kpt_oks_sigmas = np.array([0.1])
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0])
