"""What a training run is judged by, and how."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from referent.data.records import Record
from referent.evaluation.evaluate import Results, join, point_figures, summary
from referent.evaluation.predictors import ask_checkpoint
from referent.modeling.grounder import ModelGrounder, ReferentGrounder
from referent.modeling.heads import ReferentHead
from referent.training.calibration import Judged, calibrate
from referent.training.record_stream import DataError, open_image

T = TypeVar("T")


class Judge(NamedTuple):
    """The figures that a run is judged by; the first of them decides which checkpoint is the best."""

    gives: Literal["boxes", "points"]
    measure: Callable[[Results], dict[str, Any]]
    figures: tuple[str, ...]


REFERENTS = Judge("boxes", summary, ("f1",))  # of calibrated scores: `referents_validator`
BOXES = Judge("boxes", summary, ("mean_iou", "acc@0.5", "auroc", "present_threshold", "invalid", "n"))
POINTS = Judge("points", point_figures, ("f1", "precision", "recall", "success", "parse_rate", "distance_share", "n"))


def validator(
    grounder: ModelGrounder, records: Sequence[Record], images: Path, judge: Judge = BOXES
) -> Callable[[], dict[str, float]]:
    """Figures on the records; each process asks about its share of the images, and all get the same figures."""
    own = [record for of_image in _own_share(records) for record in of_image]

    def validate() -> dict[str, float]:
        figures = judge.measure(join(records, _of_all(list(ask_checkpoint(grounder, own, images)))))
        return {name: figures[name] for name in judge.figures if figures.get(name) is not None}

    return validate


def referents_validator(
    grounder: ReferentGrounder, head: ReferentHead, records: Sequence[Record], images: Path
) -> Callable[[], dict[str, float]]:
    """Calibrates the head and gives its thresholds and figures; each process asks about its share of the images.

    Raises `DataError` if the records lack present or absent objects.
    """
    if len({record.present for record in records}) < 2:
        raise DataError(
            "val.jsonl needs expressions of objects that are there and of some that are not: add the others"
        )
    own = _own_share(records)

    def validate() -> dict[str, float]:
        found = []
        for of_image in own:
            picture = open_image(of_image[0], images, grounder.spec.image)
            candidates = grounder.candidates(picture, [record.expression for record in of_image])
            for record, given in zip(of_image, candidates, strict=True):
                found.append(Judged(given, np.array(record.boxes, np.float64).reshape(-1, 4)))
        calibration = calibrate(head, _of_all(found))
        thresholds = {"present_threshold": calibration.present_threshold}
        thresholds["referent_threshold"] = calibration.referent_threshold
        return calibration.figures | thresholds | {"n": len(records)}

    return validate


def _own_share(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each image that this process asks about."""
    about: dict[str, list[Record]] = {}
    for record in records:
        about.setdefault(record.image, []).append(record)
    state, share = PartialState(), _processes()
    return list(about.values())[state.process_index % share :: share]


def _of_all(found: list[T]) -> list[T]:
    """What all processes found."""
    return gather_object(found) if _processes() > 1 else found


def _processes() -> int:
    """Among how many the images are shared. Under ZeRO-3 every process takes part in every pass, so each asks all."""
    return 1 if is_deepspeed_zero3_enabled() else PartialState().num_processes
