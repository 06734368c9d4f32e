"""Plots of training: the curves of a run, and the cells of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

LOSSES = ("loss", "box", "score", "text", "point", "patch_class", "patch_box", "token", "token_box", "presence")
VALIDATION = ("eval_mean_iou", "eval_acc@0.5", "eval_auroc", "eval_f1", "eval_success")


def plot_curves(history: Sequence[dict[str, Any]], file: Path) -> None:
    """Loss parts, learning rate and validation over steps, from Trainer's log, as a PNG."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, title, names in zip(
        axes, ("loss", "learning rate", "validation"), (LOSSES, ("learning_rate",), VALIDATION), strict=True
    ):
        for name in names:
            points = [(line["step"], line[name]) for line in history if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.removeprefix("eval_"), marker="." * (len(points) < 30))
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
    figure.savefig(file, dpi=100)


def plot_sweep(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Best mean IoU over the rank, a line for each learning rate and batch, as a PNG."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for learning_rate, batch in sorted({(row["learning_rate"], row["batch"]) for row in rows}):
        line = sorted(
            (row["rank"], row["mean_iou"])
            for row in rows
            if (row["learning_rate"], row["batch"]) == (learning_rate, batch)
        )
        axis.plot(*zip(*line, strict=True), marker="o", label=f"learning rate {learning_rate:g}, batch {batch}")
    axis.set_xlabel("rank")
    axis.set_ylabel("validation mean IoU")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=100)
