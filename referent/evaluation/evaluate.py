"""Evaluate anything that grounds (a PyTorch model, a running service) on a set."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from referent.boxes import xyxy_to_cxcywh
from referent.evaluation.sets import Item, plain_names_among_ranks
from referent.metrics import auroc, box_metrics, coordinate_errors
from referent.processor import Found


class Grounder(Protocol):
    """Image and expressions in, one result an expression out, in order."""

    def ground(self, image: Image.Image, expressions: Sequence[str]) -> Sequence[Found]: ...


class CentreBox:
    """Baseline: the middle of the image, `share` of each side (1: the whole image)."""

    def __init__(self, share: float) -> None:
        self._share = share

    def ground(self, image: Image.Image, expressions: Sequence[str]) -> list[Found]:
        """The same box for every expression."""
        box = (0.5, 0.5, self._share, self._share)
        low, high = 0.5 - self._share / 2, 0.5 + self._share / 2
        pixels = (image.width * low, image.height * low, image.width * high, image.height * high)
        return [Found(expression, pixels, box, None, None) for expression in expressions]


def evaluate(grounder: Grounder, items: Iterable[Item]) -> dict[str, Any]:
    """Box figures over the objects that are there, by kind of expression too, and AUROC of present against absent."""
    boxes, targets, kinds, scores, among_ranks, sizes = [], [], [], [], [], []
    for item in items:
        found = grounder.ground(item.image, [expression.text for expression in item.expressions])
        boxes += [result.box_xyxy for result in found]
        scores += [result.score for result in found]
        targets.append(item.boxes_xyxy)
        kinds += [expression.kind for expression in item.expressions]
        among_ranks += plain_names_among_ranks(item)
        sizes += [2 * item.image.size] * len(found)
    predicted, true, kind = np.array(boxes), np.concatenate(targets), np.array(kinds)
    present = kind != "absent"
    unit = np.array(sizes)[present]  # coordinate errors are in shares of the image, as visual-grounding-api's
    figures: dict[str, Any] = box_metrics(predicted[present], true[present])
    figures |= coordinate_errors(xyxy_to_cxcywh(predicted[present] / unit), xyxy_to_cxcywh(true[present] / unit))
    groups = {name: kind == name for name in sorted(set(kinds) - {"absent"})}
    groups["name among several ranks"] = np.array(among_ranks)
    figures["acc@0.5 by kind"] = {
        name: box_metrics(predicted[chosen], true[chosen])["acc@0.5"] for name, chosen in groups.items() if chosen.any()
    }
    if None not in scores:
        values = np.array(scores)
        figures["auroc"] = auroc(values, present)
        figures["present_threshold"] = best_threshold(values, present)
    return figures


def best_threshold(scores: np.ndarray, present: np.ndarray) -> float:
    """The score that best separates present from absent, by balanced accuracy; choose it on validation data."""
    candidates = np.unique(scores)
    hits = [(scores[present] >= c).mean() + (scores[~present] < c).mean() for c in candidates]
    return float(candidates[int(np.argmax(hits))])
