import itertools
import math
import random

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from referent.evaluation import metrics

UNIT = [0.0, 0, 10, 10]
INVALID = {
    "NaN": [np.nan] * 4,
    "infinite": [0, 0, np.inf, 10],
    "swapped corners": [10, 10, 0, 0],
    "a line": [0, 0, 10, 0],
    "a point": [5, 5, 5, 5],
}


def test_thresholds_are_inclusive() -> None:
    true = np.array([UNIT] * 4)
    predicted = np.array([UNIT, [0, 0, 5, 10], [0, 0, 9, 10], [20, 20, 30, 30]], np.float64)
    figures = metrics.box_metrics(predicted, true)
    assert figures["n"] == 4
    assert figures["mean_iou"] == pytest.approx((1 + 0.5 + 0.9 + 0) / 4)
    accuracies = {0.1: 3, 0.25: 3, 0.5: 3, 0.75: 2, 0.9: 2}
    assert {t: figures[f"acc@{t}"] for t in metrics.THRESHOLDS} == {t: n / 4 for t, n in accuracies.items()}


@pytest.mark.parametrize("box", INVALID.values(), ids=INVALID.keys())
def test_invalid_box_is_a_miss_and_stays_in_the_denominator(box: list[float]) -> None:
    figures = metrics.box_metrics(np.array([UNIT, box]), np.array([UNIT, UNIT]))
    assert (figures["n"], figures["mean_iou"], figures["acc@0.1"]) == (2, 0.5, 0.5)


def test_coordinate_errors_are_over_valid_boxes() -> None:
    errors = metrics.coordinate_errors(np.array([[0.0] * 4, [np.nan] * 4]), np.array([[0.0, 0, 0, 0.2], [0.5] * 4]))
    assert errors == {"rmse": pytest.approx(0.1), "mae": pytest.approx(0.05), "valid": 1}
    assert metrics.coordinate_errors(np.full((2, 4), np.nan), np.zeros((2, 4)))["rmse"] is None


def test_interval_holds_the_mean_and_narrows_with_more_images() -> None:
    values = np.random.default_rng(0).uniform(size=2000)
    few, many = (metrics.bootstrap_interval(values[:n], [str(i) for i in range(n)]) for n in (50, 2000))
    assert few is not None
    assert many is not None
    assert many[0] < values.mean() < many[1]
    # a uniform variable's standard error is (1 / 12 n) ** .5; the interval spans 2 * 1.96 of it
    assert many[1] - many[0] == pytest.approx(3.92 * (12 * 2000) ** -0.5, rel=0.15)
    assert few[1] - few[0] > 4 * (many[1] - many[0])


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [metrics.bootstrap_interval(rng.uniform(size=100), list(map(str, range(100)))) for _ in range(100)]
    covered = sum(low <= 0.5 <= high for low, high in filter(None, intervals))
    assert 88 <= covered <= 100


def test_rows_of_an_image_are_resampled_together() -> None:
    values = np.repeat(np.random.default_rng(2).integers(0, 2, 40), 25).astype(float)
    together = metrics.bootstrap_interval(values, np.repeat(np.arange(40), 25).astype(str).tolist())
    apart = metrics.bootstrap_interval(values, [str(i) for i in range(1000)])
    assert together is not None
    assert apart is not None
    assert together[1] - together[0] > 3 * (apart[1] - apart[0])  # 5 times, for 25 equal rows an image
    assert metrics.bootstrap_interval(values, ["one image"] * 1000) is None


def test_auroc_is_the_share_of_ordered_pairs_with_ties_half() -> None:
    scores, present = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert metrics.auroc(scores, present) == pytest.approx(3.5 / 4)
    assert metrics.auroc(np.array([0.9]), np.array([True])) is None


def test_best_threshold_separates() -> None:
    assert metrics.best_threshold(np.array([0.1, 0.2, 0.7, 0.9]), np.array([False, False, True, True])) == 0.7


def test_calibration_error_weighs_the_gap_of_each_bin_by_its_rows() -> None:
    scores, ious = np.array([0.95, 0.95, 0.95, 0.15, 1.0]), np.array([0.75, 0.75, 0.75, 0.35, 0.8])
    curve = metrics.reliability(scores, ious)
    assert [(b["low"], b["n"]) for b in curve] == [(0.1, 1), (0.9, 4)]  # a score of 1 is in the last bin
    assert metrics.expected_calibration_error(curve) == pytest.approx(0.2)
    assert metrics.expected_calibration_error(metrics.reliability(ious, ious)) == pytest.approx(0)


SIZE = np.array([[300.0, 400.0]])  # a diagonal of 500: 5 % are 25 pixels


def points(*values: tuple[float, float]) -> np.ndarray:
    return np.array(values, np.float64).reshape(-1, 2)


def test_point_figures_in_pixels_and_shares_of_the_diagonal() -> None:
    figures = metrics.point_metrics([points((103, 204))], [points((100, 200))], SIZE)
    assert figures["distance_px"] == pytest.approx(5)
    assert figures["distance_share"] == pytest.approx(0.01)
    assert (figures["mae_x_px"], figures["mae_y_px"]) == (3, 4)
    assert (figures["mse_x_px2"], figures["mse_y_px2"]) == (9, 16)
    assert (figures["success"], figures["f1"]) == (1, 1)


@pytest.mark.parametrize(
    ("predicted", "true", "precision", "recall", "success"),
    [
        ([(100, 100)] * 3, [(100, 100)], 1 / 3, 1, 1),
        ([(100, 100)], [(100, 100), (110, 100)], 1, 1 / 2, 1),
        ([(110, 100), (130, 100)], [(100, 100), (120, 100)], 1, 1, 1),
        ([(120, 100), (100, 100)], [(110, 100), (144, 100)], 1, 1, 1),
        ([(200, 200)], [(100, 100)], 0, 0, 0),
        ([(np.nan, 1), (100, 100)], [(100, 100)], 1 / 2, 1, 1),
        ([], [(100, 100)], None, 0, 0),
        ([(100, 100)], [], 0, None, None),
    ],
    ids=["duplicates", "one for two", "pairs", "not greedy", "far", "NaN", "nothing", "absent object"],
)
def test_points_match_one_to_one(
    predicted: list, true: list, precision: float | None, recall: float | None, success: float | None
) -> None:
    figures = metrics.point_metrics([points(*predicted)], [points(*true)], SIZE)
    assert (figures["precision"], figures["recall"], figures.get("success")) == (precision, recall, success)


def test_success_is_over_all_points_though_distances_are_of_answered_ones() -> None:
    figures = metrics.point_metrics([points((100, 100)), points()], [points((100, 100))] * 2, np.repeat(SIZE, 2, 0))
    assert (figures["points"], figures["answered"]) == (2, 1)
    assert (figures["distance_px"], figures["success"]) == (0, 0.5)


def brute_force(predicted: list[list], true: list[list], sizes: list[tuple]) -> dict[str, float]:
    """By counting: all ways to match, and every true point by itself."""
    matched = found = pointed = 0
    distances = []
    for guesses, targets, size in zip(predicted, true, sizes, strict=True):
        tolerance = 0.05 * math.hypot(*size)
        few, many = sorted((guesses, targets), key=len)
        ways = itertools.permutations(many, len(few))
        matched += max(sum(math.dist(a, b) <= tolerance for a, b in zip(few, way, strict=True)) for way in ways)
        nearest = [min(math.dist(point, guess) for guess in guesses) for point in targets if guesses]
        found += sum(distance <= tolerance for distance in nearest)
        distances += [(distance, distance / math.hypot(*size)) for distance in nearest]
        pointed += bool(guesses and targets)
    guesses, points, shown = sum(map(len, predicted)), sum(map(len, true)), sum(map(bool, true))
    return {
        "precision": matched / guesses, "recall": matched / points, "f1": 2 * matched / (guesses + points),
        "success": found / points, "t_acc": pointed / shown, "points": points, "predicted": guesses,
        "distance_px": float(np.mean(distances, axis=0)[0]), "distance_share": float(np.mean(distances, axis=0)[1]),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_point_figures_are_those_of_brute_force(seed: int) -> None:
    generator = random.Random(seed)

    def scattered(size: tuple[int, int], most: int) -> list[tuple[float, float]]:
        return [(generator.random() * size[0] / 2, generator.random() * size[1] / 2) for _ in range(most)]

    sizes = [(generator.randint(50, 900), generator.randint(50, 900)) for _ in range(6)]
    true = [scattered(size, generator.randint(0, 5)) for size in sizes[:5]] + [scattered(sizes[5], 3)]
    predicted = [scattered(size, generator.randint(0, 5)) for size in sizes[:5]] + [[*true[5][:2], true[5][0]]]
    figures = metrics.point_metrics([points(*p) for p in predicted], [points(*t) for t in true], np.array(sizes, float))
    expected = brute_force(predicted, true, sizes)
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_an_answer_that_says_none_was_read_and_one_that_is_missing_was_not() -> None:
    some, none = points((100, 100)), points()
    predicted, true = [some, none, None, some, none, None], [some, some, some, none, none, none]
    figures = metrics.point_metrics(predicted, true, np.repeat(SIZE, 6, 0))
    assert figures["parse_rate"] == pytest.approx(4 / 6)
    assert figures["t_acc"] == pytest.approx(1 / 3)
    assert figures["n_acc"] == pytest.approx(1 / 3)
    assert (figures["success"], figures["recall"], figures["precision"]) == pytest.approx((1 / 3, 1 / 3, 1 / 2))
    assert metrics.point_metrics([none], [none], SIZE)["t_acc"] is None
    assert metrics.point_metrics([some], [some], SIZE)["n_acc"] is None


def test_point_vlms_own_definition_is_its_own() -> None:
    """Each number by hand: percent of the sides, over a diagonal of 500 pixels."""
    predicted = [points((150, 200), (0, 0)), points(), points((30, 40)), points((5, 5))]
    true = [points((60, 160), (90, 200)), points((1, 1)), points((30, 40)), points()]
    figures = metrics.point_vlm_metrics(predicted, true, np.repeat(SIZE, 4, 0))
    first = (math.hypot(30, 10), 20.0)  # 90 of 300 pixels, 40 of 400
    assert figures == pytest.approx({
        "n": 3, "valid": 2, "distance": np.mean(first) / 2, "median_distance": np.mean(first) / 2,
        "std_distance": np.mean(first) / 2, "normalized_distance": np.mean(first) / 500 / 2,
        "mae_x": 12.5, "mae_y": 2.5, "mse_x": 325, "mse_y": 25, "success": 0.75,
    })  # fmt: skip
    right = metrics.point_metrics(predicted, true, np.repeat(SIZE, 4, 0))
    assert right["success"] == 0.25  # of all four points, by pixels
    assert metrics.point_vlm_metrics([points()], [points((1, 1))], SIZE) == {"n": 1, "valid": 0}


def test_in_a_large_image_point_vlm_counts_every_point_as_right() -> None:
    size = np.array([[3000.0, 4000.0]])
    found = metrics.point_vlm_metrics([points((0, 0))], [points((3000, 4000))], size)
    assert found["success"] == 1
    assert metrics.point_metrics([points((0, 0))], [points((3000, 4000))], size)["success"] == 0


def test_masks_overlap_as_their_pixels_do() -> None:
    pixels = np.zeros((40, 30), np.uint8)
    pixels[10:20, 5:15] = 1
    mask = coco_mask.encode(np.asfortranarray(pixels))
    assert metrics.mask_box(mask).tolist() == [5, 10, 15, 20]
    assert metrics.mask_iou(mask, metrics.box_mask(np.array([5.0, 10, 15, 20]), 30, 40)) == 1
    assert metrics.mask_iou(mask, metrics.box_mask(np.array([5.0, 10, 15, 15]), 30, 40)) == pytest.approx(0.5)
    assert metrics.mask_iou(mask, metrics.box_mask(np.array([-9.0, 10, 15, 20]), 30, 40)) == pytest.approx(100 / 150)
    assert metrics.mask_iou(mask, metrics.box_mask(np.array([5.0, 10, 15, 20]), 31, 40)) == 0  # of another size
