"""Plots of a run, as PNG bytes."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from referent.core.boxes import Floats


def accuracy_curve(curves: Mapping[str, Mapping[str, float]]) -> bytes:
    """Share of expressions at or above each IoU; a line for each model."""
    figure, axes = _square("IoU threshold", "accuracy")
    for name, curve in curves.items():
        axes.plot([float(threshold) for threshold in curve], list(curve.values()), label=name)
    if len(curves) > 1:
        axes.legend()
    return _png(figure)


def iou_histogram(ious: Floats) -> bytes:
    """Histogram of the IoUs."""
    figure, axes = _square("IoU", "expressions")
    axes.hist(ious, bins=20, range=(0, 1))
    axes.autoscale(axis="y")
    return _png(figure)


def reliability_curve(bins: list[dict[str, Any]]) -> bytes:
    """Mean IoU against mean score: a point for each bin, larger with more rows."""
    figure, axes = _square("score", "mean IoU")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="dotted")
    largest = max(b["n"] for b in bins)
    axes.plot([b["score"] for b in bins], [b["iou"] for b in bins])
    axes.scatter([b["score"] for b in bins], [b["iou"] for b in bins], [10 + 90 * b["n"] / largest for b in bins])
    return _png(figure)


def _square(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
