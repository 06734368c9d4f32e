import numpy as np
import pytest
import torch

from referent.modeling.grounder import Candidates
from referent.modeling.heads import ReferentHead
from referent.training.calibration import Judged, best_f1, calibrate, platt

BOX, ELSEWHERE = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def judged(count: int, seed: int = 0) -> list[Judged]:
    """One candidate each, right half of the time, whose logits are three times what they should be, and 2 too high."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        logit = rng.normal(0, 2)
        right = bool(rng.random() < sigmoid(logit))
        probability = float(sigmoid(3 * logit + 2))
        candidates = Candidates(np.array([BOX if right else ELSEWHERE]), np.array([probability]), probability)
        found.append(Judged(candidates, np.array([BOX] if right else []).reshape(-1, 4)))
    return found


def test_platt_scaling_undoes_what_a_logit_was_stretched_by() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    positive = rng.random(20_000) < sigmoid(logits)
    scale, bias = platt(3 * logits + 2, positive)
    assert (3 * scale, bias + 2 * scale) == pytest.approx((1, 0), abs=0.06)


def test_kinds_that_are_wholly_apart_give_finite_numbers() -> None:
    scale, bias = platt(np.array([-8.0, -7, 7, 8]), np.array([False, False, True, True]))
    assert np.isfinite([scale, bias]).all()
    assert scale > 0


def test_calibration_lowers_the_error_and_the_head_keeps_it() -> None:
    head = ReferentHead(32, 4)
    found = calibrate(head, judged(2000))
    for name in ("score", "presence"):
        assert found.figures[f"calibration_error_{name}"] < 0.05 < found.figures[f"calibration_error_{name}_before"]
        assert 3 * getattr(head, f"{name}_scale").item() == pytest.approx(1, abs=0.1)
    assert 0 < found.present_threshold < 1
    state = ReferentHead(32, 4)
    state.load_state_dict(head.state_dict())
    assert torch.equal(state.score_scale, head.score_scale)


def test_thresholds_need_both_kinds() -> None:
    with pytest.raises(ValueError, match="some that are not"):
        calibrate(ReferentHead(32, 4), [one for one in judged(20) if len(one.boxes_xyxy)])


def test_best_f1_by_hand() -> None:
    scores, right = np.array([0.2, 0.9, 0.5, 0.5]), np.array([False, True, True, False])
    assert best_f1(scores, right, 2) == (0.5, pytest.approx(4 / 5))
    assert best_f1(np.zeros(0), np.zeros(0, bool), 3) == (0.5, 0.0)
