"""Answers of a few lines, about an image of 100x100 pixels."""

import numpy as np

from referent.core.answers import Answer, Referent

SIZE = (100, 100)
SERVED_MODEL = {
    "name": "mini",
    "version": "3",
    "digest": "sha256:0",
    "kind": "head",
    "gives": "boxes",
    "several": False,
    "heatmaps": False,
    "knows": None,
    "default": True,
    "ready": True,
    "present_threshold": 0.5,
    "evaluation": {"cards": {"n": 171, "mean_iou": 0.8425, "acc@0.5": 0.947}, "scenes": {"n": 9, "auroc": 0.9957}},
}


def box_answer(
    expression: str, box_xyxy: tuple[float, ...], score: float | None = None, present: bool | None = None
) -> Answer:
    """As kind `head` answers: the best guess stays where nothing is there."""
    guess = Referent.of_box(expression, np.array(box_xyxy), SIZE, score, present)
    return Answer.of(expression, [] if present is False else [guess], present=present, guess=guess)


def points_answer(expression: str, *points_xy: tuple[float, float], score: float | None = None) -> Answer:
    """As a generator of points answers."""
    found = [Referent.of_point(expression, np.array(point), SIZE, score, True) for point in points_xy]
    return Answer.of(expression, found, present=bool(found), score=score, text="<points>", finish_reason="stop")
