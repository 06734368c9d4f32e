import numpy as np
import pytest
import torch

from referent.core.boxes import cxcywh_to_xyxy, iou
from referent.modeling.heads import SAME_OBJECT, ReferentHead, TokenOutputs

GRID = 12
TOKENS = GRID**2
LEFT, RIGHT = (0.25, 0.5, 0.3, 0.6), (0.75, 0.5, 0.2, 0.2)


@pytest.fixture(scope="module")
def head() -> ReferentHead:
    torch.manual_seed(0)
    return ReferentHead(64, TOKENS).eval()


def tokens_of(head: ReferentHead, *rows: dict[tuple[float, ...], float]) -> TokenOutputs:
    """Tokens within a box have that box and, for the expressions of a row, its logit; the others have small ones."""
    boxes = torch.cat((head.places, torch.full((TOKENS, 2), 0.02)), -1)
    logits = torch.full((len(rows), TOKENS), -9.0)
    for row, objects in zip(logits, rows, strict=True):
        for box, logit in objects.items():
            x1, y1, x2, y2 = cxcywh_to_xyxy(np.array(box))
            inside = (head.places > torch.tensor([x1, y1])).all(-1) & (head.places < torch.tensor([x2, y2])).all(-1)
            boxes[inside] = torch.tensor(box)
            row[inside] = logit - torch.linspace(0, 1, int(inside.sum()))
    return TokenOutputs(logits[None], torch.zeros(1, len(rows)), boxes[None])


def test_every_referent_has_one_slot_best_first_and_the_rest_is_empty(head: ReferentHead) -> None:
    found = head.merge(tokens_of(head, {LEFT: 2.0, RIGHT: 4.0}, {LEFT: 3.0}, {}))
    assert (found.boxes.shape, found.scores.shape) == ((1, 3, 64, 4), (1, 3, 64))
    assert [int((scores > 0).sum()) for scores in found.scores[0]] == [2, 1, 0]
    torch.testing.assert_close(found.boxes[0, 0, :2], torch.tensor([RIGHT, LEFT]))
    torch.testing.assert_close(found.scores[0, 0, :2], torch.tensor([4.0, 2.0]).sigmoid())
    assert found.boxes[0][found.scores[0] == 0].count_nonzero() == 0


def test_the_box_is_the_mean_of_the_tokens_that_agree(head: ReferentHead) -> None:
    tokens = tokens_of(head, {LEFT: 0.0})
    members = torch.arange(TOKENS)[tokens.token_logits[0, 0] > -9]
    tokens.token_logits[0, 0, members] = 0.0
    shift = 0.02 * torch.tensor([1.0, -1.0]).repeat(len(members))[: len(members)]
    tokens.boxes[0, members, 0] += shift
    tokens.token_logits[0, 0, members[0]] = 0.001  # the best is off by itself
    (box,) = head.merge(tokens).boxes[0, 0, :1].tolist()
    assert abs(box[0] - LEFT[0]) < 0.01
    assert box[1:] == pytest.approx(LEFT[1:])


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_what_one_after_the_other_would_keep(head: ReferentHead, seed: int) -> None:
    """Loose clusters of boxes: greedy suppression, token by token."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.2, 0.8, (9, 2))[rng.integers(0, 9, TOKENS)]
    boxes = np.concatenate([centres + rng.normal(0, 0.01, (TOKENS, 2)), rng.uniform(0.18, 0.22, (TOKENS, 2))], 1)
    logits = rng.normal(0, 2, TOKENS)
    corners = cxcywh_to_xyxy(boxes)
    kept: list[int] = []
    for token in np.argsort(-logits).tolist():
        if all(iou(corners[token], corners[other]) < SAME_OBJECT for other in kept):
            kept.append(token)
    tokens = TokenOutputs(*(torch.tensor(x, dtype=torch.float32) for x in (logits[None, None], [[0.0]], boxes[None])))
    scores = head.merge(tokens).scores[0, 0]
    expected = torch.tensor(logits[kept], dtype=torch.float32).sigmoid()[:64]
    torch.testing.assert_close(scores[: len(expected)], expected.where(expected >= 0.01, 0.0))


def test_an_expression_gets_what_it_gets_alone_and_an_image_too(head: ReferentHead) -> None:
    torch.manual_seed(1)
    hidden, image = 3 * torch.randn(3, 4, 64), 3 * torch.randn(3, TOKENS, 64)
    together = head.merge(head(hidden, image))
    for row in range(3):
        for slot in range(4):
            alone = head.merge(head(hidden[row : row + 1, slot : slot + 1], image[row : row + 1]))
            for name in ("boxes", "scores", "presence", "heatmap"):
                one, other = getattr(alone, name)[0, 0], getattr(together, name)[row, slot]
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_boxes_stay_within_the_frame_and_few_tokens_fill_few_slots() -> None:
    torch.manual_seed(2)
    small = ReferentHead(32, 4).eval()
    found = small.merge(small(9 * torch.randn(2, 3, 32), 9 * torch.randn(2, 4, 32)))
    corners = cxcywh_to_xyxy(found.boxes.detach().numpy())
    assert found.boxes.shape == (2, 3, 64, 4)
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6
    assert (found.scores[..., 4:] == 0).all()
    assert found.heatmap.shape == (2, 3, 2, 2)


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="577 image tokens are not square"):
        ReferentHead(32, 577)


def test_shapes_at_the_widths_of_seven_billion() -> None:
    """LLaVA-1.5-7B: 4096 wide, 576 image tokens; nothing is computed."""
    with torch.device("meta"):
        head = ReferentHead(4096, 576)
        found = head.merge(head(torch.empty(2, 16, 4096, dtype=torch.float16), torch.empty(2, 576, 4096)))
    assert [tuple(tensor.shape) for tensor in found] == [
        (2, 16, 64, 4), (2, 16, 64), (2, 16), (2, 16, 24, 24), (2, 576, 4),
    ]  # fmt: skip
    assert {tensor.dtype for tensor in found} == {torch.float32}
