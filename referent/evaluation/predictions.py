"""Predictions for records, and JSON-lines files of them.

GSEval's own rows, `{idx, predicted_box}`, are read too.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from referent.core.answers import Answer, FinishReason, Point
from referent.core.boxes import Box
from referent.core.text_files import TextFileError, fault_of, numbered_lines
from referent.data.records import Mask

ID_NAMES, BOX_NAMES = ("id", "idx"), ("box_xyxy", "predicted_box")


class PredictionsError(ValueError):
    """A file of predictions can't be used; the message names the row."""


class Prediction(BaseModel):
    """The answer for the record of the same id. A box or score with a number that isn't finite becomes None."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    id: str = Field(validation_alias=AliasChoices(*ID_NAMES))
    box_xyxy: Box | None = Field(None, validation_alias=AliasChoices(*BOX_NAMES), description="pixels of the image")
    boxes_xyxy: tuple[Box, ...] | None = Field(
        None, description="pixels, of all referents, if these are not just `box_xyxy`: several, or none"
    )
    score: float | None = Field(None, description="predicted IoU in 0..1, low where the object is absent")
    points: tuple[Point, ...] | None = Field(
        None, description="pixels of the image; none at all where the answer says so, null where it could not be read"
    )
    mask: Mask | None = None
    ms: float | None = Field(None, description="how long the request took, as its source measured it")
    error: str | None = Field(None, description="why there is no answer")
    finish_reason: FinishReason | None = Field(None, description="of an answer in text: `length` if it was cut")

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes of all referents."""
        if self.boxes_xyxy is not None:
            return self.boxes_xyxy
        return () if self.box_xyxy is None else (self.box_xyxy,)

    @field_validator("box_xyxy", "score")
    @classmethod
    def _is_finite(cls, value: Any) -> Any:
        return value if value is not None and np.isfinite(value).all() else None

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, row: Any) -> Any:
        answers = (*BOX_NAMES, "boxes_xyxy", "points", "mask", "error")
        if isinstance(row, dict) and not any(name in row for name in answers):
            raise ValueError(f"a prediction has one of {', '.join(answers)} (null where nothing was found)")
        return row


def prediction_of(id: str, answer: Answer, ms: float | None = None) -> Prediction:
    """An answer as the prediction for the record of that id: its best box, and boxes or points of all its referents.

    An answer in text without any referent has, as its score, how sure the model is that nothing is there; as a score
    for presence that becomes 0. The score of a head is always the probability that something is there.
    """
    points = tuple(referent.point_xy for referent in answer.referents if referent.point_xy is not None)
    boxes = tuple(referent.box_xyxy for referent in answer.referents if referent.box_xyxy is not None)
    best = () if answer.box_xyxy is None else (answer.box_xyxy,)
    error = "this expression's pass failed" if answer.finish_reason == "error" else None
    nothing = error is None and answer.box_xyxy is None and not points
    score = 0.0 if nothing and answer.text is not None and answer.score is not None else answer.score
    return Prediction(
        id=id,
        box_xyxy=answer.box_xyxy,
        boxes_xyxy=None if boxes == best else boxes,
        score=score,
        points=points if points or nothing else None,
        ms=ms,
        error=error,
        finish_reason=answer.finish_reason,
    )


def read_predictions(file: Path) -> list[Prediction]:
    """The rows of a JSON-lines file. Raises OSError and `PredictionsError`."""
    predictions = []
    try:
        for number, line in numbered_lines(file):
            predictions.append(_prediction(line, f"{file}:{number}"))
    except TextFileError as error:
        raise PredictionsError(str(error)) from error
    return predictions


def _prediction(line: bytes, where: str) -> Prediction:
    try:
        return Prediction.model_validate_json(line)
    except ValidationError as error:
        raise PredictionsError(f"{where}: {fault_of(error)}") from error


def write_predictions(file: Path, predictions: Iterable[Prediction]) -> None:
    """Write a file that `read_predictions` reads."""
    with file.open("w", encoding="utf-8") as lines:
        for prediction in predictions:
            # the box is written even where it is null: that is what says "nothing found"
            row = {"id": prediction.id, "box_xyxy": prediction.box_xyxy}
            row |= prediction.model_dump(exclude_none=True, exclude=set(row))
            lines.write(json.dumps(row) + "\n")
