"""Records and predictions of a few lines."""

from typing import Any

from referent.data.records import Record
from referent.evaluation.evaluate import Results, join
from referent.evaluation.predictions import Prediction

BOX = (10.0, 10.0, 30.0, 30.0)
HALF = (10.0, 10.0, 20.0, 30.0)  # half of BOX: an IoU of .5
FAR = (80.0, 80.0, 90.0, 90.0)


def record(id: str, box_xyxy: tuple[float, float, float, float] | None = BOX, **fields: Any) -> Record:
    """An expression about an image of 100x100 pixels."""
    given = {"image": f"{id}.jpg", "width": 100, "height": 100, "expression": "the cup", "split": "test"} | fields
    return Record(id=id, box_xyxy=box_xyxy, **given)


def results(*pairs: tuple[Record, dict[str, Any] | None]) -> Results:
    """Records with the fields of their predictions; None for no prediction."""
    return join([r for r, _ in pairs], [Prediction(id=r.id, **fields) for r, fields in pairs if fields is not None])
