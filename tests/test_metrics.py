import numpy as np
import pytest

from referent.evaluation.evaluate import best_threshold
from referent.metrics import auroc, box_metrics, coordinate_errors


def test_box_metrics_count_thresholds_inclusively_and_invalid_boxes_as_misses() -> None:
    true = np.array([[0.0, 0, 10, 10]] * 3)
    predicted = np.array([[0.0, 0, 10, 10], [0, 0, 5, 10], [np.nan] * 4])
    figures = box_metrics(predicted, true)
    assert figures["n"] == 3
    assert figures["mean_iou"] == pytest.approx(0.5)
    assert figures["acc@0.5"] == pytest.approx(2 / 3)
    assert figures["acc@0.75"] == pytest.approx(1 / 3)


def test_coordinate_errors() -> None:
    errors = coordinate_errors(np.zeros((1, 4)), np.array([[0.0, 0, 0, 0.2]]))
    assert errors == {"rmse": pytest.approx(0.1), "mae": pytest.approx(0.05)}


def test_auroc_is_the_share_of_ordered_pairs_with_ties_half() -> None:
    assert auroc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])) == pytest.approx(3.5 / 4)
    assert auroc(np.array([0.9]), np.array([True])) is None


def test_best_threshold_separates() -> None:
    assert best_threshold(np.array([0.1, 0.2, 0.7, 0.9]), np.array([False, False, True, True])) == 0.7
