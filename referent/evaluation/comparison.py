"""Compares several runs over the same records, from the folders that `referent evaluate` wrote."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from referent.data.records import Record, read_records
from referent.evaluation import metrics, plots
from referent.evaluation.evaluate import Results, join
from referent.evaluation.predictions import read_predictions
from referent.evaluation.report import FIGURES, PREDICTIONS, RECORDS, Gallery, new_folder, picture, write_pages
from referent.evaluation.tables import OVERLAPS, Table, number, with_interval

PICTURES = 12
NOTE = (
    "Differences are of mean IoU, from the first run's, over the same expressions; 95 % intervals by bootstrap over "
    "images. One that excludes 0 is more than chance would give."
)


class ComparisonError(ValueError):
    """Runs can't be compared; the message says which and why."""


@dataclass(frozen=True)
class Run:
    """An evaluation, read from its folder."""

    name: str
    figures: dict[str, Any]
    results: Results

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Raises `ComparisonError`."""
        if not (folder / FIGURES).is_file():
            raise ComparisonError(f"{folder} is not a run: it has no {FIGURES}; make one with: referent evaluate --out")
        figures = json.loads((folder / FIGURES).read_text())
        records = [record for record in read_records(folder / RECORDS) if isinstance(record, Record)]
        return cls(figures["run"]["name"], figures, join(records, read_predictions(folder / PREDICTIONS)))

    @property
    def images(self) -> Path | None:
        """Folder of the images, if the run had one."""
        return Path(self.figures["run"]["images"]) if self.figures["run"].get("images") else None


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, with different names. Raises `ComparisonError` if their records differ."""
    runs = [Run.load(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [Run(folder.resolve().name, run.figures, run.results) for folder, run in zip(folders, runs, strict=True)]
    first = runs[0]
    for run in runs[1:]:
        if run.results.records != first.results.records:
            ids = [{record.id for record in r.results.records} for r in (first, run)]
            raise ComparisonError(
                f"{run.name} was evaluated on other records than {first.name} ({len(ids[0] & ids[1])} ids in common of "
                f"{len(ids[0])} and {len(ids[1])}): evaluate both on the same ones"
            )
    if not first.results.boxed.any():
        raise ComparisonError("the runs' records have no boxes to compare by; figures of points are in their reports")
    return runs


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Each run's headline, and how its mean IoU differs from the first run's."""
    first = runs[0].results
    images = np.array(first.images)[first.boxed].tolist()
    found = {}
    for run in runs:
        difference = (run.results.ious - first.ious)[first.boxed]
        found[run.name] = {
            **{key: run.figures["summary"][key] for key in ("n", *OVERLAPS)},
            "intervals": run.figures["intervals"],
            "difference": float(difference.mean()),
            "difference_interval": metrics.bootstrap_interval(difference, images),
            "latency_ms": run.figures.get("latency_ms", {}).get("p50"),
        }
    return found


def comparison_table(figures: dict[str, Any]) -> Table:
    """A table with a column for each run."""
    runs = list(figures.values())
    rows = [["n", *(number(run["n"]) for run in runs)]]
    rows += [[key, *(with_interval(run[key], run["intervals"][key]) for run in runs)] for key in OVERLAPS]
    differences = [with_interval(run["difference"], run["difference_interval"]) for run in runs[1:]]
    rows.append(["difference", "", *differences])
    rows.append(["p50 ms", *(number(run["latency_ms"]) for run in runs)])
    return Table("Runs", ["", *figures], rows, NOTE)


def write_comparison(parent: Path, runs: Sequence[Run], figures: dict[str, Any]) -> Path:
    """Writes report.html, report.md and figures.json into a new folder, which is returned."""
    folder = new_folder(parent, "comparison")
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")
    charts = {"Accuracy at each threshold": plots.accuracy_curve({run.name: run.figures["curve"] for run in runs})}
    rows = _grid(runs)
    title = f"Where they differ most: the true box and what {', '.join(run.name for run in runs)} found"
    missing = "" if rows else "No pictures: the images were not given, or could not be read."
    galleries = [Gallery(title, rows)] if rows else []
    about = {"runs": ", ".join(run.name for run in runs)}
    write_pages(folder, "Comparison", about, [comparison_table(figures)], charts, galleries, missing)
    return folder


def _grid(runs: Sequence[Run]) -> list[list[Any]]:
    """For each of the records whose IoU differs most, a row with a picture for each run."""
    images = next((run.images for run in runs if run.images), None)
    if images is None:
        return []
    spread = np.stack([run.results.ious for run in runs]).std(axis=0)
    grid = []
    for row in np.argsort(-spread, kind="stable")[:PICTURES].tolist():
        record = runs[0].results.records[row]
        captions = [f"{record.expression}: {run.name}, IoU {number(float(run.results.ious[row]))}" for run in runs]
        pictures = [
            picture(record, {"found": run.results.boxes_xyxy[row]}, images, caption)
            for run, caption in zip(runs, captions, strict=True)
        ]
        if None not in pictures:
            grid.append(pictures)
    return grid
