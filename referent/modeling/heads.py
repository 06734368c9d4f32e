"""Heads that compute answers from hidden states."""

from math import isqrt
from typing import NamedTuple

import torch
from torch import nn

from referent.core.kind import MAX_INSTANCES

SCORE_FLOOR = 0.01  # what scores less is no instance
SAME_OBJECT = 0.5  # IoU from which on two tokens' boxes are taken for one object's
SUPPRESSION_ROUNDS = 3  # after which overlaps of overlaps are settled as one after the other would
PRIOR_LOGIT = -3.0  # of a token before training: few are part of a referent
PRIOR_SIDE_LOGIT = -1.5  # of a box's side before training: a fifth of the frame
NEVER = -1e9  # the logit of a token that is not chosen


class BoxHead(nn.Module):
    """Hidden state of [LOC] -> box and, where trained, score. Always computed in fp32.

    Without `widths` of the two hidden layers, the shape is visual-grounding-api's D, D/8, D/16, 4 (4096-512-256-4), but
    at least 256 wide for small models.
    """

    def __init__(
        self, hidden_size: int, dropout: float = 0.1, scores: bool = True, widths: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.mlp = _box_mlp(hidden_size, dropout, widths)
        self.score = nn.Linear(hidden_size, 1) if scores else None
        _initialise(self)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(..., D) of any dtype -> boxes (..., 4) in 0..1, score logits (...) or None."""
        hidden_states = hidden_states.float()
        scores = None if self.score is None else self.score(hidden_states).squeeze(-1)
        return self.mlp(hidden_states).sigmoid(), scores


class TokenOutputs(NamedTuple):
    """Outputs of a referent head for image tokens, before they are merged to instances."""

    token_logits: torch.Tensor  # (B, N, K), whether an image token shows a referent of an expression
    presence_logits: torch.Tensor  # (B, N), whether there is any
    boxes: torch.Tensor  # (B, K, 4) cx,cy,w,h of the object that a token shows, in shares of the frame; not clipped


class Instances(NamedTuple):
    """The referents of N expressions, in M slots each: sorted best first, unused ones have score 0 and box 0."""

    boxes: torch.Tensor  # (B, N, M, 4) cx,cy,w,h in 0..1 of the frame
    scores: torch.Tensor  # (B, N, M)
    presence: torch.Tensor  # (B, N), the probability that there is any
    heatmap: torch.Tensor  # (B, N, G, G), the probability at each image token, rows from the top
    token_boxes: torch.Tensor  # (B, K, 4) cx,cy,w,h in 0..1 of the frame, what each image token shows


class ReferentHead(nn.Module):
    """Hidden states of [LOC] and of the image tokens -> every referent of an expression. Always computed in fp32.

    An image token is part of a referent or not, by a dot product of both states; what box it shows does not depend on
    the expression. Scores and presence are calibrated after training: `calibrate` sets scale and bias of their logits.
    """

    def __init__(
        self, hidden_size: int, image_tokens: int, dropout: float = 0.1, widths: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.grid = isqrt(image_tokens)
        if self.grid**2 != image_tokens:
            raise ValueError(f"{image_tokens} image tokens are not square: a referent head needs a grid of them")
        self.mlp = _box_mlp(hidden_size, dropout, widths)
        width = max(256, hidden_size // 16)
        self.query, self.key = nn.Linear(hidden_size, width), nn.Linear(hidden_size, width)
        self.presence = nn.Linear(hidden_size, 1)
        _initialise(self)
        for parameter in self.mlp[-1].parameters():  # boxes start at their tokens
            nn.init.zeros_(parameter)
        self.prior = nn.Parameter(torch.tensor(PRIOR_LOGIT))
        self.prior_side = nn.Parameter(torch.tensor(PRIOR_SIDE_LOGIT))
        for name in ("score", "presence"):
            self.register_buffer(f"{name}_scale", torch.tensor(1.0))
            self.register_buffer(f"{name}_bias", torch.tensor(0.0))
        centres = (torch.arange(self.grid) + 0.5) / self.grid
        places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("places", places, persistent=False)  # (K, 2), x,y of the tokens' centres

    def forward(self, hidden_states: torch.Tensor, image_states: torch.Tensor) -> TokenOutputs:
        """(B, N, D) and (B, K, D) of any dtype."""
        hidden_states = hidden_states.float()
        logits = self.token_logits(hidden_states, image_states)
        return TokenOutputs(logits, self.presence(hidden_states).squeeze(-1), self.boxes(image_states, self.places))

    def token_logits(self, hidden_states: torch.Tensor, image_states: torch.Tensor) -> torch.Tensor:
        """(B, N, D) and (B, K, D) -> (B, N, K)."""
        query, key = self.query(hidden_states.float()), self.key(image_states.float())
        return query @ key.transpose(1, 2) * query.shape[-1] ** -0.5 + self.prior

    def boxes(self, image_states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """States (..., D) of image tokens and x,y (..., 2) of their centres -> (..., 4) cx,cy,w,h."""
        found = self.mlp(image_states.float())
        return torch.cat((places + found[..., :2], (found[..., 2:] + self.prior_side).sigmoid()), -1)

    def merge(self, tokens: TokenOutputs) -> Instances:
        """Tokens whose boxes overlap show one object: the best token represents it, and its box is a mean over all.

        Shapes of outputs depend only on shapes of inputs, so that a graph can be exported and batched.
        """
        logits = tokens.token_logits
        corners = _clipped_corners(tokens.boxes)  # (B, K, 4)
        overlap = _pairwise_iou(corners)  # (B, K, K)
        kept = _best_of_each(logits, overlap)  # (B, N, K)
        slots = min(MAX_INSTANCES, logits.shape[-1])
        best_logits, best = torch.where(kept, logits, NEVER).topk(slots)  # (B, N, M) each
        scores = (best_logits * self.score_scale + self.score_bias).sigmoid()
        # agreement falls to 0 where the suppression begins, so that no box jumps where a token comes to belong to it
        agreement = overlap.gather(1, best.flatten(1)[..., None].expand(-1, -1, overlap.shape[-1]))
        agreement = (agreement.unflatten(1, best.shape[1:]) - SAME_OBJECT).clamp(min=0)  # (B, N, M, K)
        weights = agreement * logits.sigmoid()[:, :, None]
        boxes = (weights @ corners[:, None]) / weights.sum(-1, keepdim=True).clamp(min=1e-9)  # (B, N, M, 4)
        boxes = _centred(boxes)
        used = (scores >= SCORE_FLOOR) & (boxes[..., 2:] > 0).all(-1)
        scores = torch.where(used, scores, 0.0)
        unused = MAX_INSTANCES - slots
        return Instances(
            nn.functional.pad(torch.where(used[..., None], boxes, 0.0), (0, 0, 0, unused)),
            nn.functional.pad(scores, (0, unused)),
            (tokens.presence_logits * self.presence_scale + self.presence_bias).sigmoid(),
            (logits * self.score_scale + self.score_bias).sigmoid().unflatten(-1, (self.grid, self.grid)),
            _centred(corners),
        )


def _box_mlp(hidden_size: int, dropout: float, widths: tuple[int, int] | None) -> nn.Sequential:
    wide, narrow = widths or (max(256, hidden_size // 8), max(256, hidden_size // 16))
    return nn.Sequential(
        nn.Linear(hidden_size, wide), nn.GELU(), nn.Dropout(dropout),
        nn.Linear(wide, narrow), nn.GELU(), nn.Dropout(dropout),
        nn.Linear(narrow, 4),
    )  # fmt: skip


def _initialise(head: nn.Module) -> None:
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _clipped_corners(boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1).clamp(0, 1)


def _centred(corners: torch.Tensor) -> torch.Tensor:
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def _pairwise_iou(corners: torch.Tensor) -> torch.Tensor:
    """(B, K, 4) xyxy -> (B, K, K)."""
    area = (corners[..., 2:] - corners[..., :2]).prod(-1)
    a, b = corners[:, :, None], corners[:, None]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return shared / (area[:, :, None] + area[:, None] - shared).clamp(min=1e-9)


def _best_of_each(logits: torch.Tensor, overlap: torch.Tensor) -> torch.Tensor:
    """(B, N, K), (B, K, K) -> (B, N, K) bool: tokens whose object is not shown by a better token that is kept."""
    tokens = logits.shape[-1]
    rank = logits.topk(tokens).indices.topk(tokens, largest=False).indices  # 0 the best; no two are equal
    better = rank[..., None, :] < rank[..., None]  # (B, N, K, K): the last is better than the one before
    beats = (better & (overlap >= SAME_OBJECT)[:, None]).to(logits.dtype)
    kept = torch.ones_like(logits)
    for _ in range(SUPPRESSION_ROUNDS):
        kept = ((beats @ kept[..., None]).squeeze(-1) == 0).to(logits.dtype)
    return kept > 0
