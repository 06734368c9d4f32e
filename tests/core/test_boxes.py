import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from referent.core import boxes

coordinate = st.floats(-1e4, 1e4, allow_nan=False, width=64)
side = st.floats(1e-3, 1e4, allow_nan=False, width=64)
box = st.tuples(coordinate, coordinate, side, side).map(lambda v: np.array([v[0], v[1], v[0] + v[2], v[1] + v[3]]))


@given(box)
def test_formats_round_trip(xyxy: np.ndarray) -> None:
    np.testing.assert_allclose(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(xyxy)), xyxy, atol=1e-8)


@given(box, box)
def test_overlap_is_symmetric_bounded_and_one_on_itself(a: np.ndarray, b: np.ndarray) -> None:
    assert 0 <= boxes.iou(a, b) <= 1
    assert boxes.iou(a, b) == pytest.approx(boxes.iou(b, a))
    assert boxes.iou(a, a) == pytest.approx(1)


def test_iou_of_known_boxes() -> None:
    a, b = np.array([0.0, 0, 2, 2]), np.array([1.0, 1, 3, 3])
    assert boxes.iou(a, b) == pytest.approx(1 / 7)


def test_empty_boxes_overlap_nothing() -> None:
    point = np.array([1.0, 1, 1, 1])
    assert boxes.iou(point, point) == 0
    assert boxes.area(np.array([3.0, 3, 1, 1])) == 0


@given(box, st.integers(1, 10_000), st.integers(1, 10_000))
def test_clipped_boxes_lie_in_the_image(xyxy: np.ndarray, width: int, height: int) -> None:
    clipped = boxes.clip_xyxy(xyxy, width, height)
    assert (clipped >= 0).all()
    assert (clipped <= [width, height, width, height]).all()
    np.testing.assert_array_equal(boxes.clip_xyxy(clipped, width, height), clipped)
