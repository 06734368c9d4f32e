"""Figures of merit for boxes, scores, points and masks, from plain arrays.

An invalid prediction is a row of NaN: it counts as a miss in every share and mean of IoU. Errors in a unit of length
(RMSE, distances) are over the valid predictions only, and give their number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from scipy.stats import bootstrap

from referent.core.boxes import Bools, Floats, clip_xyxy, iou

Interval = tuple[float, float]

THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)
MIN_SIDE = 1e-6  # a box with a shorter side is degenerate
POINT_TOLERANCE = 0.05  # of the image's diagonal
BINS = 10
RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0


def without_invalid(boxes_xyxy: Floats) -> Floats:
    """(M, 4) -> the same with NaN for every box without area or with a number that isn't finite."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    valid = np.asarray(np.isfinite(boxes_xyxy).all(axis=1) & (sides >= MIN_SIDE).all(axis=1))
    return np.where(valid[:, None], boxes_xyxy, np.nan)


def overlaps(boxes_xyxy: Floats, targets_xyxy: Floats) -> Floats:
    """IoU of pairs, (M, 4) both -> (M,); 0 for an invalid box."""
    return np.nan_to_num(iou(without_invalid(boxes_xyxy), targets_xyxy), nan=0.0)


def overlap_metrics(ious: Floats) -> dict[str, Any]:
    """Mean IoU and the share with IoU >= each threshold; (M,), M at least 1."""
    accuracies = {f"acc@{t}": float((ious >= t).mean()) for t in THRESHOLDS}
    return {"n": len(ious), "mean_iou": float(ious.mean())} | accuracies


def box_metrics(boxes_xyxy: Floats, targets_xyxy: Floats) -> dict[str, Any]:
    """`overlap_metrics` of pairs of boxes, (M, 4) both."""
    return overlap_metrics(overlaps(boxes_xyxy, targets_xyxy))


def coordinate_errors(boxes_cxcywh: Floats, targets_cxcywh: Floats) -> dict[str, Any]:
    """RMSE and MAE over the four coordinates of the valid boxes, in the boxes' unit; None if none is valid."""
    valid = np.isfinite(boxes_cxcywh).all(axis=1)
    difference = (boxes_cxcywh - targets_cxcywh)[valid]
    if not len(difference):
        return {"rmse": None, "mae": None, "valid": 0}
    errors = {"rmse": float(np.sqrt((difference**2).mean())), "mae": float(np.abs(difference).mean())}
    return errors | {"valid": int(valid.sum())}


def bootstrap_interval(values: Floats, groups: Sequence[str]) -> Interval | None:
    """95% percentile interval of the mean of (M,) values; whole groups (the rows of an image) are drawn together.

    The seed is fixed. None if all rows are in one group.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.bincount(group)
    if len(counts) < 2:
        return None
    sums = np.bincount(group, weights=values)

    def mean(sums: Floats, counts: Floats, axis: int) -> Floats:
        return np.asarray(sums.sum(axis=axis) / counts.sum(axis=axis))

    interval = bootstrap(
        (sums, counts), mean, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=100,
        confidence_level=CONFIDENCE, method="percentile", rng=SEED,
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def auroc(scores: Floats, positive: Bools) -> float | None:
    """Probability that a positive scores above a negative, ties half (Mann-Whitney U); None without both kinds."""
    above, below = scores[positive], scores[~positive]
    if not len(above) or not len(below):
        return None
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, "left") + np.searchsorted(ordered, above, "right")
    return float(wins.mean() / (2 * len(below)))


def best_threshold(scores: Floats, present: Bools) -> float:
    """The score that best separates present from absent, by balanced accuracy; choose it on validation data."""
    candidates = np.unique(scores)
    hits = [(scores[present] >= c).mean() + (scores[~present] < c).mean() for c in candidates]
    return float(candidates[int(np.argmax(hits))])


def reliability(scores: Floats, ious: Floats) -> list[dict[str, float]]:
    """For each of ten equal bins of the score that is not empty: the mean score and the mean IoU, which it predicts."""
    bins = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    return [
        {"low": b / BINS, "n": int((bins == b).sum()), "score": float(scores[bins == b].mean()),
         "iou": float(ious[bins == b].mean())}
        for b in np.unique(bins).tolist()
    ]  # fmt: skip


def expected_calibration_error(curve: Sequence[dict[str, float]]) -> float:
    """Mean distance of score and IoU over the bins of `reliability`, weighted by their rows."""
    return sum(b["n"] * abs(b["score"] - b["iou"]) for b in curve) / sum(b["n"] for b in curve)


def point_metrics(predicted: Sequence[Floats | None], true: Sequence[Floats], sizes: Floats) -> dict[str, Any]:
    """Points in pixels, (P, 2) and (T, 2) for each of M images; sizes (M, 2) are the images' width and height. A
    prediction is None if no answer could be read, and has no points if the answer says that nothing is there.

    Distances are from a true point to the nearest prediction, over true points of images with a prediction. Success is
    the share of all true points that have a prediction within 5% of the diagonal. For precision, recall and F1, each
    prediction is matched with at most one true point; duplicates, invalid points, and points for an absent object
    (T = 0) are false positives. The parse rate is the share of answers that could be read. T-acc is the share of images
    with a true point that have a prediction, N-acc that of the others whose answer says so.
    """
    offsets, diagonals, matched, guesses, pointed, denied = [], [], 0, 0, 0, 0
    for answer, targets, diagonal in zip(predicted, true, np.hypot(*sizes.T), strict=True):
        if answer is None:
            continue
        guesses += len(answer)
        denied += not len(answer) and not len(targets)
        points = answer[np.isfinite(answer).all(axis=1)]
        if not len(points) or not len(targets):
            continue
        pointed += 1
        difference = points[None] - targets[:, None]  # (T, P, 2)
        distance = np.hypot(difference[..., 0], difference[..., 1])
        offsets.append(difference[np.arange(len(targets)), distance.argmin(axis=1)])
        diagonals += [diagonal] * len(targets)
        near = distance <= POINT_TOLERANCE * diagonal
        # a pair that is too far apart costs more than all near ones together, so that most true points are matched
        cost = np.where(near, distance, distance.size * diagonal)
        matched += int(near[linear_sum_assignment(cost)].sum())
    total, shown = sum(map(len, true)), sum(len(targets) > 0 for targets in true)
    figures: dict[str, Any] = {"n": len(true), "points": total, "predicted": guesses, "answered": len(diagonals)}
    figures["parse_rate"] = sum(answer is not None for answer in predicted) / len(true)
    figures["t_acc"] = pointed / shown if shown else None
    figures["n_acc"] = denied / (len(true) - shown) if shown < len(true) else None
    if diagonals:
        offset = np.concatenate(offsets)  # (answered, 2)
        pixels = np.hypot(*offset.T)
        share = pixels / diagonals
        figures |= {"distance_px": float(pixels.mean()), "median_distance_px": float(np.median(pixels))}
        figures |= {"distance_share": float(share.mean()), "median_distance_share": float(np.median(share))}
        for axis, along in zip("xy", offset.T, strict=True):
            figures |= {f"mae_{axis}_px": float(np.abs(along).mean()), f"mse_{axis}_px2": float((along**2).mean())}
        figures["success"] = float((share <= POINT_TOLERANCE).sum() / total)
    elif total:
        figures["success"] = 0.0
    precision = matched / guesses if guesses else None
    recall = matched / total if total else None
    f1 = 2 * matched / (guesses + total) if guesses + total else None
    return figures | {"precision": precision, "recall": recall, "f1": f1}


def point_vlm_metrics(predicted: Sequence[Floats | None], true: Sequence[Floats], sizes: Floats) -> dict[str, Any]:
    """As `point_metrics`, by the definition behind point-vlm's published table, for comparison with that alone.

    It measures x and y in percent of the image's sides, yet divides by the diagonal in pixels: success is easier in
    larger images, and with a diagonal from 2829 pixels every point is right. Means are over images; images without a
    prediction are left out. One prediction may match several true points, and false ones cost nothing.
    """
    rows = []
    shown = 0
    for answer, targets, size in zip(predicted, true, sizes, strict=True):
        shown += len(targets) > 0
        if answer is None or not len(targets):
            continue
        points = answer[np.isfinite(answer).all(axis=1)]
        if not len(points):
            continue
        difference = 100 * (points[None] - targets[:, None]) / size  # (T, P, 2)
        distance = np.hypot(difference[..., 0], difference[..., 1])
        offset = difference[np.arange(len(targets)), distance.argmin(axis=1)]  # (T, 2)
        nearest, diagonal = distance.min(axis=1), np.hypot(*size)
        success = (nearest <= POINT_TOLERANCE * diagonal).mean()
        rows.append(
            (
                nearest.mean(),
                nearest.mean() / diagonal,
                *(offset**2).mean(axis=0),
                *np.abs(offset).mean(axis=0),
                success,
            )
        )
    figures: dict[str, Any] = {"n": shown, "valid": len(rows)}
    if rows:
        names = ("distance", "normalized_distance", "mse_x", "mse_y", "mae_x", "mae_y", "success")
        columns = np.array(rows).T
        figures |= {name: float(column.mean()) for name, column in zip(names, columns, strict=True)}
        figures |= {"median_distance": float(np.median(columns[0])), "std_distance": float(columns[0].std())}
    return figures


def box_mask(box_xyxy: Floats, width: int, height: int) -> dict[str, Any]:
    """A box in pixels as COCO RLE, clipped to the image."""
    x1, y1, x2, y2 = clip_xyxy(box_xyxy, width, height).tolist()
    return dict(coco_mask.frPyObjects(np.array([[x1, y1, x2 - x1, y2 - y1]]), height, width)[0])


def mask_pixels(mask: dict[str, Any]) -> Bools:
    """COCO RLE -> (H, W)."""
    return np.asarray(coco_mask.decode(mask), bool)


def mask_box(mask: dict[str, Any]) -> Floats:
    """COCO RLE -> (4,), the smallest box xyxy in pixels around its mask."""
    x, y, width, height = coco_mask.toBbox(mask).tolist()
    return np.array([x, y, x + width, y + height])


def mask_iou(mask: dict[str, Any], target: dict[str, Any]) -> float:
    """IoU of two masks in COCO RLE (`size` (height, width), compressed `counts`); 0 for masks of unequal sizes."""
    return max(0.0, float(coco_mask.iou([mask], [target], [0])[0, 0]))
