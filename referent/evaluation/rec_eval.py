"""Reads REC-Eval's files: answers of published models with the true boxes, which is all that the figures need.

`{data set: {model: [{text, prediction, gt_bbox}]}}`; gt_bbox is x, y, w, h in pixels, and a prediction has one of
`box` (x1, y1, x2, y2 in pixels), `detections` (each with such a box and a score) and `text` (any form of
`referent.core.text_forms`). Images and their sizes are not in the file, so points are read but not judged.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, RootModel, ValidationError

from referent.core.boxes import Box, Floats
from referent.core.text_files import TextFileError, fault_of, open_utf8
from referent.core.text_forms import read_text
from referent.evaluation import metrics
from referent.evaluation.predictions import PredictionsError


class Detection(BaseModel):
    """A box that a detector gives, with its score."""

    box: Box
    score: FiniteFloat


class RecEvalAnswer(BaseModel):
    """A model's answer, in one of three forms."""

    model_config = ConfigDict(extra="forbid")

    box: Box | None = None
    detections: list[Detection] | None = None
    text: str | None = None


def _with_area(box_xywh: Box) -> Box:
    if not (all(map(math.isfinite, box_xywh)) and min(box_xywh[2:]) > 0):
        raise ValueError("a true box is x, y, width, height in pixels, and has an area")
    return box_xywh


class RecEvalRow(BaseModel):
    """One expression; `text` is the expression."""

    text: str
    prediction: RecEvalAnswer
    gt_bbox: Annotated[Box, AfterValidator(_with_area)]


_Rows = Annotated[list[RecEvalRow], Field(min_length=1)]
_Models = Annotated[dict[str, _Rows], Field(min_length=1)]


class RecEval(RootModel[Annotated[dict[str, _Models], Field(min_length=1)]]):
    """A whole file."""


def read_rec_eval(file: Path) -> RecEval:
    """Raises OSError and `PredictionsError`."""
    try:
        with open_utf8(file) as stream:
            return RecEval.model_validate_json(stream.read())
    except TextFileError as error:
        raise PredictionsError(str(error)) from error
    except ValidationError as error:
        raise PredictionsError(f"{file}: no file of REC-Eval: {fault_of(error)}") from error


def rec_eval_figures(rows: list[RecEvalRow], form: str | None = None) -> dict[str, Any]:
    """Figures of one model on one set; a prediction without a valid box is a miss.

    `form` is that of the texts; None: it is detected from their syntax. "any box" takes the best of a row's boxes.
    """
    best, of_any, said, invalid = [], [], Counter[str](), Counter[str]()
    for row in rows:
        boxes, kind, reason = _read(row.prediction, form)
        said[kind] += 1
        if reason:
            invalid[reason] += 1
        x, y, w, h = row.gt_bbox
        target = np.array([[x, y, x + w, y + h]])
        ious = metrics.overlaps(boxes, np.repeat(target, len(boxes), axis=0)) if len(boxes) else np.zeros(1)
        best.append(ious[0])
        of_any.append(ious.max())
    figures = metrics.overlap_metrics(np.array(best)) | {"acc@0.5 of any box": float((np.array(of_any) >= 0.5).mean())}
    return figures | {"answers": dict(said), "invalid": dict(invalid.most_common())}


def _read(answer: RecEvalAnswer, form: str | None) -> tuple[Floats, str, str | None]:
    """Boxes xyxy in pixels (M, 4), best first; the kind of answer; the reason if it is invalid."""
    if answer.detections:
        ordered = sorted(answer.detections, key=lambda detection: -detection.score)
        boxes = np.array([detection.box for detection in ordered], np.float64)
    elif answer.box is not None:
        boxes = np.array([answer.box], np.float64)
    elif answer.text is not None:
        reading = read_text(answer.text, form)
        if reading.reason:
            return np.empty((0, 4)), "unread", reading.reason
        if reading.points:
            return np.empty((0, 4)), "points", None
        if reading.boxes and reading.unit == "share":
            return np.empty((0, 4)), "boxes", "shares of an image whose size the file does not have"
        boxes = np.array(reading.boxes, np.float64).reshape(-1, 4)
    else:
        boxes = np.empty((0, 4))
    if not len(boxes):
        return boxes, "nothing", None
    has_area = bool(np.isfinite(metrics.without_invalid(boxes)).any())
    return boxes, "boxes", None if has_area else "a box without area, or with its corners out of order"
