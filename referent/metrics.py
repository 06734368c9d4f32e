"""Figures of merit for boxes and scores, from plain arrays."""

import numpy as np

from referent.boxes import Floats, iou

THRESHOLDS = (0.1, 0.25, 0.5, 0.75)


def box_metrics(boxes_xyxy: Floats, targets_xyxy: Floats) -> dict[str, float]:
    """Mean IoU and the share of boxes with IoU >= each threshold; (M, 4) both. An invalid box scores 0."""
    overlaps = iou(boxes_xyxy, targets_xyxy)
    overlaps = np.where(np.isfinite(overlaps), overlaps, 0)
    accuracies = {f"acc@{t}": float((overlaps >= t).mean()) for t in THRESHOLDS}
    return {"n": len(overlaps), "mean_iou": float(overlaps.mean())} | accuracies


def coordinate_errors(boxes_cxcywh: Floats, targets_cxcywh: Floats) -> dict[str, float]:
    """RMSE and MAE over the four coordinates, in the boxes' unit."""
    difference = boxes_cxcywh - targets_cxcywh
    return {"rmse": float(np.sqrt((difference**2).mean())), "mae": float(np.abs(difference).mean())}


def auroc(scores: Floats, positive: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties half (Mann-Whitney U); None without both kinds."""
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        return None
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, "left") + np.searchsorted(ordered, above, "right")
    return float(wins.mean() / (2 * len(below)))
