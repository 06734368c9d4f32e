"""Figures for expressions with several referents or none; predicted and true boxes are matched one to one.

gRefCOCO's measures: Pr@(F1=1) is the share of expressions that are entirely right, no-target ones included; N-acc is
the share of no-target expressions that get no box, T-acc the share of the others that get any.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from referent.core.boxes import Bools, Floats, iou
from referent.evaluation.metrics import without_invalid

MATCH_IOU = 0.5
MOST = 4  # expressions with so many referents or more are one group


def several_figures(predicted: Sequence[Floats], true: Sequence[Floats]) -> dict[str, Any]:
    """Boxes xyxy in pixels, (P, 4) and (T, 4) for each of M expressions, in any order; invalid ones are wrong.

    `f1`, `precision` and `recall` are over all boxes together, at IoU >= 0.5; `count_error` is the mean difference of
    the numbers of boxes. A figure is None if it is not defined, as `n_acc` is without no-target expressions.
    """
    matched = np.array([matches(p, t) for p, t in zip(predicted, true, strict=True)], int)
    guesses, sought = (np.array([len(boxes) for boxes in rows], int) for rows in (predicted, true))
    figures = _figures(matched, guesses, sought)
    groups = np.minimum(sought, MOST)
    figures["by referents"] = {
        f"{count}{'+' * (count == MOST)}": _figures(*(values[groups == count] for values in (matched, guesses, sought)))
        for count in np.unique(groups).tolist()
    }
    return figures


def _figures(matched: Floats, guesses: Floats, sought: Floats) -> dict[str, Any]:
    """Figures from three numbers for each expression (M,): matched pairs, predicted boxes, true boxes."""
    total, none = int(guesses.sum() + sought.sum()), sought == 0
    exact = (matched == guesses) & (matched == sought)
    return {
        "n": len(sought),
        "pr@f1=1": _share(exact),
        "n_acc": _share(guesses[none] == 0),
        "t_acc": _share(guesses[~none] > 0),
        "f1": 2 * int(matched.sum()) / total if total else None,
        "precision": int(matched.sum()) / int(guesses.sum()) if guesses.any() else None,
        "recall": int(matched.sum()) / int(sought.sum()) if sought.any() else None,
        "count_error": float(np.abs(guesses - sought).mean()) if len(sought) else None,
    }


def _share(right: Bools) -> float | None:
    return float(right.mean()) if len(right) else None


def matches(predicted_xyxy: Floats, true_xyxy: Floats) -> int:
    """The most pairs of a predicted (P, 4) and a true box (T, 4) with IoU >= 0.5, each box in one pair at most."""
    near = _overlaps(predicted_xyxy, true_xyxy) >= MATCH_IOU
    return int(near[linear_sum_assignment(near, maximize=True)].sum())


def score_order_matches(predicted_xyxy: Floats, true_xyxy: Floats) -> Bools:
    """(P,) which of the predicted boxes, best first, are right: each takes, of the true boxes (T, 4) that are left, the
    one with the highest IoU, if that is at least 0.5."""
    overlaps = _overlaps(predicted_xyxy, true_xyxy)
    right = np.zeros(len(overlaps), bool)
    for index in range(len(overlaps)):
        if overlaps.shape[1] and overlaps[index].max() >= MATCH_IOU:
            right[index] = True
            overlaps[:, overlaps[index].argmax()] = 0
    return right


def _overlaps(predicted_xyxy: Floats, true_xyxy: Floats) -> Floats:
    """(P, T) IoU; 0 for an invalid box."""
    return np.nan_to_num(iou(without_invalid(predicted_xyxy)[:, None], true_xyxy[None]), nan=0.0)
