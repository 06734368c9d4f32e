"""Writes the report of a run into its own folder.

report.html        everything, with the pictures inside: one file to send
report.md          the tables
figures.json       the figures, and what was run
records.csv        a row for each record
records.jsonl, predictions.jsonl   to compute figures again, or to compare with another run
"""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from referent.client.drawing import draw
from referent.core.answers import Answer, Referent
from referent.core.boxes import Floats
from referent.core.images import ImageError
from referent.core.sources import picture_of
from referent.data.records import Record, write_records
from referent.evaluation import plots
from referent.evaluation.analysis import failures, worst_and_best
from referent.evaluation.evaluate import Results, points_of
from referent.evaluation.predictions import write_predictions
from referent.evaluation.tables import Table, markdown, number, tables

FIGURES, RECORDS, PREDICTIONS = "figures.json", "records.jsonl", "predictions.jsonl"
THUMBNAIL = 320  # longest side, pixels


class ReportPicture(NamedTuple):
    """An image with boxes drawn on it, as a data URL, and its caption."""

    url: str
    caption: str


class Gallery(NamedTuple):
    title: str
    rows: list[list[ReportPicture]]


def write_report(
    parent: Path, run: Mapping[str, Any], figures: Mapping[str, Any], results: Results, images: Path | None
) -> Path:
    """Write the report of `run` (its `name` and other facts); returns its new folder, below `parent`."""
    folder = new_folder(parent, run["name"])
    (folder / FIGURES).write_text(json.dumps({"run": run} | dict(figures), indent=2) + "\n")
    write_records(folder / RECORDS, results.records)
    write_predictions(folder / PREDICTIONS, filter(None, results.predictions))
    _write_csv(folder / "records.csv", results)
    shown = tables(figures)
    charts = {}
    if results.boxed.any():
        charts["Accuracy at each threshold"] = plots.accuracy_curve({run["name"]: figures["curve"]})
        charts["IoU of all expressions"] = plots.iou_histogram(results.ious[results.boxed])
    if "scores" in figures:
        charts["Reliability of the score"] = plots.reliability_curve(figures["scores"]["reliability"])
    galleries = _galleries(results, images) if images else []
    missing = "" if galleries else "No pictures: the images were not given, or could not be read."
    write_pages(folder, f"Evaluation of {run['name']}", run, shown, charts, galleries, missing)
    return folder


def new_folder(parent: Path, name: str) -> Path:
    """`parent`/`name`-<now>."""
    folder = parent / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    return folder


def write_pages(
    folder: Path, title: str, run: Mapping[str, Any], shown: Sequence[Table], charts: Mapping[str, bytes],
    galleries: Sequence[Gallery], note: str = "",
) -> None:  # fmt: skip
    """Writes report.html and report.md; the page has the pictures before the tables."""
    stated = {key: _stated(value) for key, value in run.items() if value not in (None, "", {})}
    environment = Environment(
        loader=PackageLoader("referent.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("report.html.jinja").render(
        title=title, run=stated, tables=shown,
        charts={name: data_url(png, "image/png") for name, png in charts.items()}, galleries=galleries, note=note,
    )  # fmt: skip
    (folder / "report.html").write_text(html, encoding="utf-8")
    about = "\n".join(f"- {key}: {value}" for key, value in stated.items())
    text = "\n\n".join([f"# {title}", about, *([note] if note else []), *map(markdown, shown)])
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")


def _stated(value: object) -> str:
    """The value as text; a mapping of counts as "3 a, 2 b"."""
    return ", ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, Mapping) else str(value)


def picture(record: Record, found: Mapping[str, Floats], images: Path, caption: str) -> ReportPicture | None:
    """A thumbnail of the record's image with what is true and what the named others found; None if it can't be read.

    Pixels of the image: a box (4,) xyxy, NaN for none, or points (P, 2).
    """
    try:
        image = picture_of(images / record.image)
    except (OSError, ImageError):
        return None
    scale = THUMBNAIL / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    true = record.points or record.box_xyxy or [np.nan] * 4
    # all are named, so that a name has one colour in every picture
    shown = []
    for name, place in ({"true": np.array(true)} | dict(found)).items():
        marks = [mark * scale for mark in np.atleast_2d(place) if np.isfinite(mark).all()]
        of = Referent.of_point if place.shape[-1] == 2 else Referent.of_box
        shown.append(Answer.of(name, [of(name, mark, image.size) for mark in marks], present=None))
    buffer = io.BytesIO()
    draw(image, shown).save(buffer, "JPEG", quality=80)
    return ReportPicture(data_url(buffer.getvalue(), "image/jpeg"), caption)


def data_url(data: bytes, media_type: str) -> str:
    """The bytes as a URL that can be used inside a page."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _galleries(results: Results, images: Path) -> list[Gallery]:
    kinds = failures(results)
    galleries = []
    for title, rows in zip(("Worst", "Best"), worst_and_best(results), strict=True):
        pictures = []
        for row in rows:
            record = results.records[row]
            found = results.boxes_xyxy[row]
            judged = f"IoU {number(float(results.ious[row]))}"
            if record.points:
                points = points_of(results.predictions[row])
                found = np.empty((0, 2)) if points is None else points
                judged = f"F1 {number(float(results.point_f1[row]))}"
            caption = ", ".join(filter(None, [f"{record.expression}: {judged}", kinds[row]]))
            pictures.append(picture(record, {"found": found}, images, caption))
        galleries.append(Gallery(f"{title} {len(rows)}", [[shown for shown in pictures if shown]]))
    return [gallery for gallery in galleries if gallery.rows[0]]


def _write_csv(file: Path, results: Results) -> None:
    kinds = failures(results)
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        corners = ("x1", "y1", "x2", "y2")
        columns = ["id", "image", "split", "expression", "tags", *(f"true_{c}" for c in corners), *corners]
        writer.writerow([*columns, "iou", "score", "failure", "ms", "error", "true_points", "points", "point_f1"])
        for row, (record, prediction) in enumerate(zip(results.records, results.predictions, strict=True)):
            found = [
                *results.targets_xyxy[row].tolist(),
                *results.boxes_xyxy[row].tolist(),
                results.point_f1[row].item(),
            ]
            *numbers, f1 = (None if np.isnan(value) else value for value in found)
            iou = float(results.ious[row]) if results.boxed[row] else None
            answer = (prediction.ms, prediction.error) if prediction else (None, "missing")
            places = [
                json.dumps(points) if points else None for points in (record.points, prediction and prediction.points)
            ]
            writer.writerow(
                [record.id, record.image, record.split, record.expression, json.dumps(record.tags), *numbers, iou,
                 prediction and prediction.score, kinds[row], *answer, *places, f1]
            )  # fmt: skip
