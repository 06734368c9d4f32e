"""Analyses where a model is right and wrong: groups of records, kinds of failure, latency."""

from collections import Counter
from typing import Any

import numpy as np

from referent.core.boxes import area
from referent.evaluation.evaluate import (
    Results,
    baselines,
    groups,
    intervals,
    mask_figures,
    mask_groups,
    point_figures,
    point_vlm_figures,
    score_figures,
    several_figures,
    summary,
)

RIGHT = 0.5  # IoU of a prediction that is no failure
CURVE = np.linspace(0, 1, 21)
AREAS = {"small": 0.05, "medium": 0.2, "large": np.inf}  # upper limits, shares of the image
WORDS = {"1-3": 4, "4-6": 7, "7+": np.inf}
ASPECTS = {"tall": 0.7, "square": 1.4, "wide": np.inf}  # width / height in pixels


def analyse(results: Results) -> dict[str, Any]:
    """All figures of a run."""
    found: dict[str, Any] = {"summary": summary(results)}
    if results.boxed.any():
        found |= {
            "intervals": intervals(results),
            "groups": groups(results),
            "baselines": baselines(results),
            "curve": {f"{t:.2f}": float((results.ious[results.boxed] >= t).mean()) for t in CURVE},
            "audit": bias_audit(results),
            "failures": dict(Counter(kind for kind in failures(results) if kind).most_common()),
        }
    parts = {
        "several": several_figures, "scores": score_figures, "points": point_figures,
        "point_vlm": point_vlm_figures, "masks": mask_figures, "mask_groups": mask_groups, "latency_ms": latency,
    }  # fmt: skip
    return found | {name: figures for name, part in parts.items() if (figures := part(results))}


def bias_audit(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """IoU by properties of the true box and the expression: area, words, aspect."""
    width, height = (results.targets_xyxy[:, 2:] - results.targets_xyxy[:, :2]).T
    traits = {
        "area": (_area_shares(results), AREAS),
        "words": (_words(results), WORDS),
        "aspect": (np.divide(width, height, out=np.full_like(width, np.inf), where=height > 0), ASPECTS),
    }
    audit = {}
    for trait, (values, limits) in traits.items():
        group = np.searchsorted(list(limits.values()), values, "right")
        members = {name: results.ious[results.boxed & (group == i)] for i, name in enumerate(limits)}
        audit[trait] = {
            name: {"n": len(ious), "mean": float(ious.mean()), "median": float(np.median(ious)),
                   "std": float(ious.std())}
            for name, ious in members.items() if len(ious)
        }  # fmt: skip
    return audit


def failures(results: Results) -> list[str | None]:
    """The kind of each failure, the first that fits; None for rows that are right or have no true box."""
    predicted, true = results.unit_boxes
    distance = np.hypot(*(predicted[:, :2] - true[:, :2]).T)  # NaN without a valid box: no comparison holds
    conditions = {
        "no valid box": ~np.isfinite(predicted).all(axis=1),
        "small object": _area_shares(results) < 0.03,
        "right place, wrong scale": (distance < 0.15) & (results.ious < 0.3),
        "wrong location": distance > 0.3,
        "complex expression": _words(results) >= 7,
    }
    failed = results.boxed & (results.ious < RIGHT)
    kinds = np.select(list(conditions.values()), list(conditions), "ambiguous")
    return [str(kind) if failure else None for kind, failure in zip(kinds, failed, strict=True)]


def worst_and_best(results: Results, worst: int = 10, best: int = 5) -> tuple[list[int], list[int]]:
    """Rows of lowest and of highest IoU, or F1 of points; ties in the records' order."""
    figure = np.where(results.boxed, results.ious, np.nan) if results.boxed.any() else results.point_f1
    judged = np.flatnonzero(np.isfinite(figure))
    order = judged[np.argsort(figure[judged], kind="stable")].tolist()
    return order[:worst], order[::-1][:best]


def latency(results: Results) -> dict[str, float]:
    """Milliseconds of the requests, as the source measured them. Equal times of an image are one request."""
    times = {(image, p.ms) for image, p in zip(results.images, results.predictions, strict=True) if p and p.ms}
    if not times:
        return {}
    ms = [time for _, time in times]
    return {"n": len(ms), "mean": float(np.mean(ms)), "p50": float(np.median(ms)), "p95": float(np.percentile(ms, 95))}


def _area_shares(results: Results) -> np.ndarray:
    return np.nan_to_num(area(results.targets_xyxy)) / results.sizes.prod(axis=1)


def _words(results: Results) -> np.ndarray:
    return np.array([len(record.expression.split()) for record in results.records])
