"""Calibrates a referent head's scores on data that it was not trained on: Platt scaling, and two thresholds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from referent.core.boxes import Bools, Floats
from referent.evaluation import metrics
from referent.evaluation.several import score_order_matches
from referent.modeling.grounder import Candidates
from referent.modeling.heads import ReferentHead

NEWTON_STEPS = 50
SMALLEST_SCALE = 0.1  # scores stay in the order that the head gives them
TOLD_APART_FROM = 0.1  # calibration is judged by scores from here on: the many below are right without any skill


class Judged(NamedTuple):
    """A head's candidates for an expression, and the true boxes (T, 4) xyxy in pixels; none if it is absent."""

    candidates: Candidates
    boxes_xyxy: Floats


class Calibration(NamedTuple):
    """Thresholds of calibrated scores, and the errors before and after calibration."""

    present_threshold: float
    referent_threshold: float
    figures: dict[str, float]


def calibrate(head: ReferentHead, judged: Sequence[Judged]) -> Calibration:
    """Set the head's scale and bias of both logits. The thresholds are those of the best balanced accuracy of present
    against absent, and then of the best F1 over all referents.

    Raises ValueError unless there are both present and absent expressions.
    """
    present = np.array([len(boxes) > 0 for _, boxes in judged])
    if present.all() or not present.any():
        raise ValueError("calibration needs expressions of objects that are there and of some that are not")
    presence = np.array([candidates.presence for candidates, _ in judged])
    scores = np.concatenate([candidates.scores for candidates, _ in judged])
    right = np.concatenate([score_order_matches(c.boxes_xyxy, boxes) for c, boxes in judged])
    before = {"score": _error(scores, right), "presence": _error(presence, present)}
    scores, presence = _fit(head, "score", scores, right), _fit(head, "presence", presence, present)
    after = {"score": _error(scores, right), "presence": _error(presence, present)}

    present_threshold = _rounded(metrics.best_threshold(presence, present))
    told = np.repeat(presence >= present_threshold, [len(candidates.scores) for candidates, _ in judged])
    total = sum(len(boxes) for _, boxes in judged)
    referent_threshold, f1 = best_f1(scores[told], right[told], total)
    figures = {f"calibration_error_{name}": error for name, error in after.items()}
    figures |= {f"calibration_error_{name}_before": error for name, error in before.items()}
    return Calibration(present_threshold, _rounded(referent_threshold), figures | {"f1": f1})


def best_f1(scores: Floats, right: Bools, total: int) -> tuple[float, float]:
    """The threshold with the best F1 over (P,) scored candidates, if `total` objects are sought, and that F1."""
    if not len(scores):
        return 0.5, 0.0
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * right[order].cumsum() / (np.arange(1, len(order) + 1) + total)
    last = np.append(np.diff(scores[order]) < 0, True)  # a threshold takes all candidates of one score
    best = int(np.argmax(np.where(last, f1, -1)))
    return float(scores[order][best]), float(f1[best])


def platt(logits: Floats, positive: Bools) -> tuple[float, float]:
    """Scale and bias of logits (M,) so that their sigmoid is a probability: logistic regression on Platt's targets.
    These are not quite 0 and 1, so that it converges even if the classes are separable."""
    hits, misses = positive.sum(), (~positive).sum()
    targets = np.where(positive, (hits + 1) / (hits + 2), 1 / (misses + 2))
    design = np.stack([logits, np.ones_like(logits)])  # (2, M)
    weights = np.array([1.0, 0.0])
    for _ in range(NEWTON_STEPS):
        probabilities = 1 / (1 + np.exp(-weights @ design))
        curvature = (design * (probabilities * (1 - probabilities))) @ design.T
        step = np.linalg.solve(curvature + 1e-6 * np.eye(2), design @ (targets - probabilities))
        weights = weights + step / max(1.0, float(np.abs(step).max()))
    return max(SMALLEST_SCALE, float(weights[0])), float(weights[1])


def _fit(head: ReferentHead, name: str, probabilities: Floats, positive: Bools) -> Floats:
    """Sets the head's scale and bias on top of those that it has; returns the probabilities that it gives then."""
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    logits = np.log(clipped / (1 - clipped))
    scale, bias = platt(logits, positive)
    own_scale: torch.Tensor = getattr(head, f"{name}_scale")
    own_bias: torch.Tensor = getattr(head, f"{name}_bias")
    own_scale.mul_(scale)
    own_bias.mul_(scale).add_(bias)
    return np.asarray(1 / (1 + np.exp(-(scale * logits + bias))))


def _error(probabilities: Floats, positive: Bools) -> float:
    judged = probabilities >= TOLD_APART_FROM
    if not judged.any():
        return 0.0
    curve = metrics.reliability(probabilities[judged], positive[judged].astype(np.float64))
    return metrics.expected_calibration_error(curve)


def _rounded(threshold: float) -> float:
    return math.floor(1000 * threshold) / 1000
