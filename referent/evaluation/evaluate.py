"""Joins records with their predictions, and computes the figures."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from referent.core.boxes import Bools, Box, Floats, cxcywh_to_xyxy, xyxy_to_cxcywh
from referent.data.records import Mask, Record
from referent.evaluation import metrics, several
from referent.evaluation.predictions import Prediction, PredictionsError

BASELINES = {"centre box": 0.4, "whole image": 1.0}  # share of each side
MAX_GROUPS = 300  # a tag with more values than this names single records, not groups
MAX_HEADLINE_GROUPS = 20  # the summary travels with the bundle
NO_BOX = np.full(4, np.nan)


@dataclass(frozen=True)
class Results:
    """M records and their predictions; the arrays have a row for each record."""

    records: list[Record]
    predictions: list[Prediction | None]  # None if the record has none

    @cached_property
    def sizes(self) -> Floats:
        """(M, 2) width and height of the images."""
        return np.array([(record.width, record.height) for record in self.records], np.float64)

    @cached_property
    def targets_xyxy(self) -> Floats:
        """(M, 4) true boxes xyxy in pixels, a mask's box if only a mask is given; NaN if there is none."""
        return np.array([_box(record.box_xyxy, record.mask) for record in self.records], np.float64)

    @cached_property
    def boxes_xyxy(self) -> Floats:
        """(M, 4) predicted boxes xyxy in pixels, a mask's box if only a mask is given; NaN for an invalid one."""
        boxes = [NO_BOX if p is None else _box(p.box_xyxy, p.mask) for p in self.predictions]
        return metrics.without_invalid(np.array(boxes, np.float64))

    @cached_property
    def scores(self) -> Floats:
        """(M,) scores; NaN if there is none."""
        scores = [None if p is None else p.score for p in self.predictions]
        return np.array(scores, np.float64)

    @cached_property
    def present(self) -> Bools:
        """(M,) whether the image shows the object."""
        return np.array([record.present or record.mask is not None for record in self.records])

    @cached_property
    def boxed(self) -> Bools:
        """(M,) whether there is a true box; box figures are computed over these rows."""
        return np.isfinite(self.targets_xyxy).all(axis=1)

    @cached_property
    def ious(self) -> Floats:
        """(M,) IoU of predicted and true box; 0 without a valid prediction or a true box."""
        return np.asarray(np.where(self.boxed, metrics.overlaps(self.boxes_xyxy, self.targets_xyxy), 0.0))

    @cached_property
    def mask_ious(self) -> Floats:
        """(M,) IoU of the predicted mask, or else box, with the true mask; 0 if neither is valid, NaN without a true
        mask."""
        ious = np.full(len(self.records), np.nan)
        for index, (record, prediction) in enumerate(zip(self.records, self.predictions, strict=True)):
            if record.mask is None:
                continue
            height, width = record.mask.size
            predicted: dict[str, Any] | None = None
            if prediction is not None and prediction.mask is not None:
                predicted = prediction.mask.model_dump()
            elif np.isfinite(self.boxes_xyxy[index]).all():
                predicted = metrics.box_mask(self.boxes_xyxy[index], width, height)
            ious[index] = 0.0 if predicted is None else metrics.mask_iou(predicted, record.mask.model_dump())
        return ious

    @cached_property
    def point_f1(self) -> Floats:
        """(M,) F1 of the predicted points; NaN for a record without points."""
        found = np.full(len(self.records), np.nan)
        for index, record in enumerate(self.records):
            if record.points:
                pair = [points_of(self.predictions[index])], [_array(record.points)]
                found[index] = metrics.point_metrics(*pair, self.sizes[index : index + 1])["f1"]
        return found

    @cached_property
    def unit_boxes(self) -> tuple[Floats, Floats]:
        """Predicted and true boxes, (M, 4) cx, cy, w, h in shares of the image."""
        unit = np.tile(self.sizes, 2)
        return xyxy_to_cxcywh(self.boxes_xyxy / unit), xyxy_to_cxcywh(self.targets_xyxy / unit)

    @cached_property
    def images(self) -> list[str]:
        """The image of each record."""
        return [record.image for record in self.records]


def join(records: Iterable[Record], predictions: Iterable[Prediction]) -> Results:
    """Assigns predictions to their records, by id; predictions without a record are ignored.

    Raises `PredictionsError` if an id occurs twice, no id is a record's, or a mask is of another size than its image;
    ValueError if there are no records or two have the same id.
    """
    records, by_id = list(records), {}
    for prediction in predictions:
        if prediction.id in by_id:
            raise PredictionsError(f"two predictions have the id {prediction.id!r}: keep one")
        by_id[prediction.id] = prediction
    if not records:
        raise ValueError("there are no records to evaluate")
    twice, times = Counter(record.id for record in records).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{times} records have the id {twice!r}: ids must be unique")
    if by_id and not any(record.id in by_id for record in records):
        raise PredictionsError(
            f"no prediction is for any of the records: its ids are such as {next(iter(by_id))!r}, "
            f"theirs such as {records[0].id!r}"
        )
    for record in records:
        found = by_id.get(record.id)
        if found and found.mask and found.mask.size != (record.height, record.width):
            raise PredictionsError(
                f"the mask of {record.id!r} has size {list(found.mask.size)}, its image "
                f"{[record.height, record.width]} (height, width): give masks at the image's size"
            )
    return Results(records, [by_id.get(record.id) for record in records])


def summary(results: Results) -> dict[str, Any]:
    """The headline figures, which are also stored in a checkpoint and its bundle.

    Box figures are over the records with a true box; coordinate errors are in shares of the image, over valid boxes.
    """
    figures: dict[str, Any] = {"n": int(results.boxed.sum())}
    if figures["n"]:
        figures |= metrics.overlap_metrics(results.ious[results.boxed])
        figures |= metrics.coordinate_errors(*(boxes[results.boxed] for boxes in results.unit_boxes))
        figures["missing"] = sum(
            p is None for p, boxed in zip(results.predictions, results.boxed, strict=True) if boxed
        )
        figures["invalid"] = figures["n"] - figures["valid"] - figures["missing"]
        for tag, rows in groups(results).items():
            if 1 < len(rows) <= MAX_HEADLINE_GROUPS:
                figures[f"acc@0.5 by {tag}"] = {value: row["acc@0.5"] for value, row in rows.items()}
        figures["baselines"] = {
            name: {key: row[key] for key in ("mean_iou", "acc@0.5")} for name, row in baselines(results).items()
        }
    if any(record.boxes_xyxy for record in results.records):
        found = several_figures(results)
        figures["several"] = {key: value for key, value in found.items() if key != "by referents"}
    scored = np.isfinite(results.scores)
    if len(np.unique(results.present[scored])) == 2:
        # a missing score tells neither present nor absent, so it counts as the worst one
        worst = np.where(results.present, -np.inf, np.inf)
        figures["auroc"] = metrics.auroc(np.where(scored, results.scores, worst), results.present)
        figures["present_threshold"] = metrics.best_threshold(results.scores[scored], results.present[scored])
    return figures


def groups(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """Box figures by split and by the values of each tag that has at most `MAX_GROUPS`; "(none)" is without the tag."""
    return _grouped(results, results.ious, results.boxed)


def mask_groups(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """As `groups`, for masks."""
    return _grouped(results, results.mask_ious, np.isfinite(results.mask_ious))


def _grouped(results: Results, ious: Floats, chosen: Bools) -> dict[str, dict[str, dict[str, Any]]]:
    labels = {"split": [record.split for record in results.records]}
    for tag in sorted({tag for record in results.records for tag in record.tags}):
        labels[tag] = [record.tags.get(tag, "(none)") for record in results.records]
    found = {}
    for tag, values in labels.items():
        label = np.array(values)
        names = np.unique(label[chosen]).tolist()
        if 0 < len(names) <= MAX_GROUPS:
            rows = {name: ious[chosen & (label == name)] for name in names}
            found[tag] = {name: metrics.overlap_metrics(values) for name, values in rows.items()}
    return found


def baselines(results: Results) -> dict[str, dict[str, Any]]:
    """Box figures of boxes that ignore image and expression."""
    found = {}
    for name, share in BASELINES.items():
        box = cxcywh_to_xyxy(np.array([0.5, 0.5, share, share])) * np.tile(results.sizes, 2)
        found[name] = metrics.box_metrics(box[results.boxed], results.targets_xyxy[results.boxed])
    return found


def intervals(results: Results) -> dict[str, metrics.Interval | None]:
    """95% bootstrap intervals of mean IoU and accuracies, whole images resampled."""
    ious = results.ious[results.boxed]
    images = [image for image, boxed in zip(results.images, results.boxed, strict=True) if boxed]
    values = {"mean_iou": ious} | {f"acc@{t}": (ious >= t).astype(np.float64) for t in metrics.THRESHOLDS}
    return {name: metrics.bootstrap_interval(value, images) for name, value in values.items()}


def score_figures(results: Results) -> dict[str, Any]:
    """How well the score predicts the IoU, over rows that have a score; the IoU of an absent object is 0."""
    scored = np.isfinite(results.scores) & (results.boxed | ~results.present)
    scores, ious, boxed = results.scores[scored], results.ious[scored], results.boxed[scored]
    if not len(scores):
        return {}
    curve = metrics.reliability(scores, ious)
    return {
        "n": len(scores),
        "ece": metrics.expected_calibration_error(curve),
        "auroc of acc@0.5": metrics.auroc(scores[boxed], ious[boxed] >= 0.5),
        "reliability": curve,
    }


def several_figures(results: Results) -> dict[str, Any]:
    """Figures over all referents, for records with boxes or absent objects; empty if each expression means one."""
    chosen = [
        index
        for index, record in enumerate(results.records)
        if record.boxes or not (record.present or record.mask is not None)
    ]
    counts = {len(results.records[index].boxes) for index in chosen}
    if counts <= {1} or (counts == {0} and any(record.points for record in results.records)):
        return {}
    return several.several_figures(
        [_found(results.predictions[index]) for index in chosen],
        [_table(results.records[index].boxes) for index in chosen],
    )


def _found(prediction: Prediction | None) -> Floats:
    """(P, 4) predicted boxes; a point is a box that is never right."""
    if prediction is None:
        return _table(())
    return _table(prediction.boxes or [NO_BOX] * len(prediction.points or ()))


def _table(boxes_xyxy: Sequence[Box | Floats]) -> Floats:
    return np.array(boxes_xyxy, np.float64).reshape(-1, 4)


def point_figures(results: Results) -> dict[str, Any]:
    """Figures of points; empty if no record has points. A box points at its centre."""
    if not (pointed := _pointed(results)):
        return {}
    cut = sum(p is not None and p.finish_reason == "length" for p in results.predictions)
    return metrics.point_metrics(*pointed) | {"cut": cut}


def point_vlm_figures(results: Results) -> dict[str, Any]:
    """As `point_figures`, by point-vlm's own definition (`metrics.point_vlm_metrics`)."""
    return metrics.point_vlm_metrics(*pointed) if (pointed := _pointed(results)) else {}


def _pointed(results: Results) -> tuple[list[Floats | None], list[Floats], Floats] | None:
    """Predicted and true points, and the images' sizes, of records with points or nothing; None where no record has
    points."""
    chosen = [index for index, record in enumerate(results.records) if record.points or not results.present[index]]
    if not any(results.records[index].points for index in chosen):
        return None
    predicted = [points_of(results.predictions[index]) for index in chosen]
    true = [_array(results.records[index].points or ()) for index in chosen]
    return predicted, true, results.sizes[chosen]


def mask_figures(results: Results) -> dict[str, Any]:
    """IoU of the predicted mask, or else box, with the true mask; and that of the true box, the best for a box."""
    masked = np.isfinite(results.mask_ious)
    if not masked.any():
        return {}
    ceiling = [
        metrics.mask_iou(metrics.box_mask(box, record.mask.size[1], record.mask.size[0]), record.mask.model_dump())
        for box, record in zip(results.targets_xyxy, results.records, strict=True)
        if record.mask is not None
    ]
    return metrics.overlap_metrics(results.mask_ious[masked]) | {"true box": float(np.mean(ceiling))}


def _box(box_xyxy: Sequence[float] | None, mask: Mask | None) -> Sequence[float] | Floats:
    if box_xyxy is not None:
        return box_xyxy
    return NO_BOX if mask is None else metrics.mask_box(mask.model_dump())


def points_of(prediction: Prediction | None) -> Floats | None:
    """(P, 2), none at all if the answer says so; None without an answer that can be read."""
    if prediction is None or prediction.error is not None:
        return None
    if prediction.points is not None:
        return _array(prediction.points)
    if prediction.boxes_xyxy is None and prediction.box_xyxy is None:
        return None
    boxes = metrics.without_invalid(_table(prediction.boxes))
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _array(points: Sequence[Sequence[float]]) -> Floats:
    return np.array(points, np.float64).reshape(-1, 2)
