"""Figures as tables, for the console, Markdown and HTML."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from referent.evaluation.metrics import THRESHOLDS

ACCURACIES = [f"acc@{threshold}" for threshold in THRESHOLDS]
OVERLAPS = ["mean_iou", *ACCURACIES]


class Table(NamedTuple):
    """Cells are text; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """All tables of a run's figures (`referent.evaluation.analysis.analyse`), the headline first."""
    found = []
    if "groups" in figures:
        found.append(_headline(figures))
    if "several" in figures:
        found.append(_several(figures["several"]))
    if "groups" in figures:
        found.append(_errors(figures["summary"]))
        for tag, rows in figures["groups"].items():
            found.append(Table(f"By {tag}", [tag, "n", *OVERLAPS], _rows(rows, ["n", *OVERLAPS])))
        for trait, rows in figures["audit"].items():
            spread = ["n", "mean", "median", "std"]
            found.append(Table(f"IoU by {trait}", [trait, *spread], _rows(rows, spread), TRAITS[trait]))
        failures = figures["failures"]
        found.append(
            Table("Failures", ["first kind that fits", "n"], [[kind, str(n)] for kind, n in failures.items()], FAILURES)
        )
    if "scores" in figures:
        found.append(_scores(figures))
    for name, (title, note) in SIMPLE.items():
        if name in figures:
            found.append(Table(title, ["", ""], [[key, number(v)] for key, v in figures[name].items()], note))
    if "point_vlm" in figures:
        found.append(_point_vlm(figures["point_vlm"]))
    for tag, rows in figures.get("mask_groups", {}).items():
        found.append(Table(f"Masks by {tag}", [tag, "n", *OVERLAPS], _rows(rows, ["n", *OVERLAPS])))
    return found


def number(value: float | None) -> str:
    """Integers as they are, other numbers to three places, empty text for None."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:z.3f}"


def with_interval(value: float, interval: tuple[float, float] | None) -> str:
    """Such as "0.512 (0.498 to 0.527)"."""
    return number(value) + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")


def markdown(table: Table) -> str:
    """A heading, the table and its note; pipes in cells are escaped."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    rows = ("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines)
    return "\n".join([f"## {table.title}", "", *rows, *(["", table.note] if table.note else [])])


def console(table: Table) -> RichTable:
    """For a terminal."""
    shown = RichTable(
        *map(escape, table.columns), title=escape(table.title), caption=escape(table.note), box=box.SIMPLE
    )
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown


TRAITS = {
    "area": "True box's share of the image: small below .05, medium below .20.",
    "words": "Words of the expression.",
    "aspect": "True box's width / height in pixels: tall below .7, square below 1.4.",
}
FAILURES = (
    "IoU below .5. Small object: below .03 of the image. Right place, wrong scale: centres closer than .15 of the "
    "image's sides and IoU below .3. Wrong location: farther than .3. Complex expression: 7 words or more."
)
SEVERAL = (
    "Predicted and true boxes match one to one, at IoU >= .5. pr@f1=1: share of expressions that are right to the last "
    "box. n_acc: share of those without a referent that get no box; t_acc: of the others that get any. count_error: "
    "mean distance of the numbers of boxes."
)
SCORES = (
    "The score predicts the IoU with the true box, 0 where the object is absent; ECE is the mean distance of the two "
    "over ten bins, weighted by their rows."
)
POINTS = (
    "Distances from a true point to the nearest predicted one, where anything was predicted. Success: share of all "
    "true points that have one within 5 % of the diagonal. Precision, recall and F1 match one to one. Parse rate: "
    "share of answers that could be read. t_acc: share of the images with something to find that have a point; n_acc: "
    "of the others, those with none. cut: answers that the limit of instances ended. A box points at its centre."
)
POINT_VLM = (
    "The definition behind point-vlm's published table, to compare with that alone: x and y in percent over a diagonal "
    "in pixels, images without a point left out, false points free. Published: its own 100 images of PixMo-Points."
)
PUBLISHED = {  # by point-vlm
    "n": 100, "valid": 79, "distance": 22.31, "median_distance": 12.88, "std_distance": 19.33,
    "normalized_distance": 0.0211, "mse_x": 658.67, "mse_y": 303.09, "mae_x": 16.73, "mae_y": 10.73, "success": 0.9011,
}  # fmt: skip
MASKS = (
    'IoU with the true mask of the predicted mask, or else of the predicted box; "true box" is what the true box gets.'
)
SIMPLE = {
    "points": ("Points", POINTS),
    "masks": ("Masks", MASKS),
    "latency_ms": ("Latency, ms of a request", ""),
}
ERRORS = "RMSE and MAE are over centre x, centre y, width and height in shares of the image, of the valid boxes alone."


def rec_eval_table(name: str, models: Mapping[str, Mapping[str, Any]]) -> Table:
    """Figures of `referent.evaluation.rec_eval`, with a row for each model."""
    keys = ["n", "mean_iou", "acc@0.5", "acc@0.5 of any box"]
    rows = []
    for model, figures in models.items():
        answers = ", ".join(f"{count} {kind}" for kind, count in figures["answers"].items())
        invalid = "; ".join(f"{count} {reason}" for reason, count in figures["invalid"].items())
        rows.append([model, *(number(figures[key]) for key in keys), answers, invalid])
    return Table(
        name,
        ["", *keys, "answers", "invalid"],
        rows,
        "Points are read but not judged: the file has no sizes of images.",
    )


def _headline(figures: Mapping[str, Any]) -> Table:
    summary, intervals, baselines = figures["summary"], figures["intervals"], figures["baselines"]
    rows = [
        [key, with_interval(summary[key], intervals[key]), *(number(row[key]) for row in baselines.values())]
        for key in OVERLAPS
    ]
    note = f"{summary['n']} expressions; 95 % intervals by bootstrap over images. Missing and invalid are misses."
    return Table("Boxes", ["", "prediction", *baselines], rows, note)


def _errors(summary: Mapping[str, Any]) -> Table:
    keys = ["n", "valid", "invalid", "missing", "rmse", "mae"]
    return Table("Validity and coordinate errors", keys, [[number(summary[key]) for key in keys]], ERRORS)


def _point_vlm(figures: Mapping[str, Any]) -> Table:
    rows = [[key, number(figures.get(key)), number(published)] for key, published in PUBLISHED.items()]
    return Table("Points, as point-vlm counts them", ["", "here", "published"], rows, POINT_VLM)


def _several(figures: Mapping[str, Any]) -> Table:
    keys = ["n", "pr@f1=1", "n_acc", "t_acc", "f1", "precision", "recall", "count_error"]
    rows = {"all": figures} | dict(figures["by referents"])
    return Table("All referents, by their number", ["referents", *keys], _rows(rows, keys), SEVERAL)


def _scores(figures: Mapping[str, Any]) -> Table:
    scores = figures["scores"]
    rows = [
        ["present / absent AUROC", number(figures["summary"].get("auroc"))],
        ["threshold of best balanced accuracy", number(figures["summary"].get("present_threshold"))],
        ["AUROC of IoU >= 0.5", number(scores["auroc of acc@0.5"])],
        ["ECE", number(scores["ece"])],
        ["n", number(scores["n"])],
    ]
    return Table("Scores", ["", ""], rows, SCORES)


def _rows(figures: Mapping[str, Mapping[str, Any]], keys: Iterable[str]) -> list[list[str]]:
    keys = list(keys)
    return [[name, *(number(row[key]) for key in keys)] for name, row in figures.items()]
