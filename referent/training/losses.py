"""Losses of grounding models; each is a mean over a batch.

- box: L1 (mean over cx, cy, w, h) and 1 - GIoU of objects that are there alone, weighted.
- score: cross-entropy to the predicted box's IoU, 0 for absent objects.
- point: the last layer's attention from [LOC] should fall on patches of the object or objects, or on the row's first
  token for an absent one.
- token, token_box, presence: of the referent head, focal loss over all image tokens, the box at each token that shows
  an object, and cross-entropy of whether there is any. Before the language model is trained, the boxes are read off
  the image features.
- text: for models that answer in words instead, cross-entropy of the answer's tokens.
- dense: from each patch's image feature the object's class, and its box through the box head itself. What the box
  head learns at thousands of patches serves at [LOC], which then only has to fetch the right patch. And its rank among
  the objects of its name in several orders: from each side, and by size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from referent.core.contract import DETECTOR_INPUTS
from referent.modeling.grounding import GroundingModel, HeadOutputs, States
from referent.modeling.heads import ReferentHead

BACKGROUND_WEIGHT, LABEL_SMOOTHING = 0.3, 0.02
FOCUS = 2.0  # how much less a token counts that is told well already
NO_LABEL = -100  # of what is not learnt: tokens outside of answers, objects without a rank


class LossWeights(NamedTuple):
    """Weights of the parts; as published by visual-grounding-api, with scores beside."""

    l1: float = 1.0
    giou: float = 1.0
    score: float = 1.0


PRETRAINING = LossWeights(l1=8.0)


def overlap(a_cxcywh: torch.Tensor, b_cxcywh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and GIoU of pairs, (..., 4) x (..., 4) -> (...)."""
    a_low, a_high = a_cxcywh[..., :2] - a_cxcywh[..., 2:] / 2, a_cxcywh[..., :2] + a_cxcywh[..., 2:] / 2
    b_low, b_high = b_cxcywh[..., :2] - b_cxcywh[..., 2:] / 2, b_cxcywh[..., :2] + b_cxcywh[..., 2:] / 2
    intersection = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = a_cxcywh[..., 2:].prod(-1) + b_cxcywh[..., 2:].prod(-1) - intersection
    enclosing = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1)
    iou = intersection / (union + 1e-7)
    return iou, iou - (enclosing - union) / (enclosing + 1e-7)


def box_loss(boxes: torch.Tensor, targets: torch.Tensor, weights: LossWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and the pairs' IoU; both (M, 4) cx,cy,w,h."""
    iou, giou = overlap(boxes, targets)
    l1 = (boxes - targets).abs().mean(-1)
    return (weights.l1 * l1 + weights.giou * (1 - giou)).sum() / max(1, len(boxes)), iou


def expression_losses(
    grounding: HeadOutputs, batch: dict[str, torch.Tensor], weights: LossWeights
) -> dict[str, torch.Tensor]:
    """box and score of a batch (see `referent.training.encoding`), and its mean IoU as a figure."""
    single, absent = batch["single"], batch["used"] & ~batch["present"]
    losses = {}
    losses["box"], iou = box_loss(grounding.boxes[single], batch["boxes"][single], weights)
    if grounding.score_logits is not None:
        quality = torch.zeros_like(grounding.score_logits)
        quality[single] = iou.detach()
        judged = single | absent
        score = F.binary_cross_entropy_with_logits(grounding.score_logits[judged], quality[judged], reduction="sum")
        losses["score"] = weights.score * score / judged.sum().clamp(min=1)
    return losses | {"iou": iou.detach().sum() / max(1, len(iou))}


def point_loss(attention: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the attention (B, H, N, T) from [LOC], in rows that start with one token (bos), then the image."""
    targets = F.pad(batch["points"], (1, attention.shape[-1] - 1 - batch["points"].shape[-1]))
    targets[..., 0] = batch["used"] & ~batch["present"]
    mass = (attention.mean(1) * targets).sum(-1)  # (B, N)
    return -(mass[targets.any(-1)] + 1e-6).log().mean()


def referent_losses(head: ReferentHead, states: States, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """token and presence of a batch (see `referent.mini.stream`), and the share of expressions whose best token shows
    one of their objects as a figure. Tokens that are `unsure` (B, N, K), where the batch has these, are left out."""
    used, shown = batch["used"], batch["points"]
    logits = head.token_logits(states.hidden_states, states.image_states)
    entropy = F.binary_cross_entropy_with_logits(logits, shown.float(), reduction="none")
    focal = entropy * (1 - torch.exp(-entropy)) ** FOCUS
    if "unsure" in batch:
        focal = focal * ~batch["unsure"]
    # a sum over tokens, in units of the objects' own: one token beside a small object is worth as much as the object
    token = focal.sum(-1) / shown.sum(-1).clamp(min=1)
    presence = head.presence(states.hidden_states.float()).squeeze(-1)
    pointed = shown.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)[batch["present"]].float()
    return {
        "token": token[used].sum() / used.sum().clamp(min=1),
        "presence": F.binary_cross_entropy_with_logits(presence[used], batch["present"][used].float()),
        "pointed": pointed.sum() / max(1, len(pointed)),
    }


def token_box_loss(
    head: ReferentHead, image_states: torch.Tensor, batch: dict[str, torch.Tensor], weights: LossWeights
) -> torch.Tensor:
    """Of the boxes at image tokens that show an object, whether it is asked for or not."""
    shown = batch["patch_shown"]
    places = head.places.expand(len(shown), -1, -1)[shown]
    return box_loss(head.boxes(image_states[shown], places), batch["patch_boxes"][shown], weights)[0]


def answer_loss(model: GroundingModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of answer tokens: hidden states (B, N, D) that predict labels (B, N)."""
    chosen = labels != NO_LABEL
    logits = model.token_logits(hidden[chosen])  # (M, V)
    return F.cross_entropy(logits, labels[chosen], reduction="sum") / max(1, len(logits))


class DenseSupervision(nn.Module):
    """Logits of class and ranks from image features; exists in training only."""

    def __init__(self, hidden_size: int, classes: int, orders: int = 0, ranks: int = 0) -> None:
        super().__init__()
        self.orders = orders
        self.norm = nn.LayerNorm(hidden_size)
        self.classify = nn.Linear(hidden_size, classes + 1)
        self.rank = nn.Linear(hidden_size, orders * ranks) if orders else None

    def losses(
        self, model: GroundingModel, image_features: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """patch_class, patch_rank where it is supervised and, of a model with a box head, patch_box of a batch; and the
        shares of object patches that are classified and ranked right as figures."""
        labels, objects = batch["patch_class"], batch["patch_shown"]
        features = self.norm(image_features.float())
        logits = self.classify(features).float()
        entropy = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=LABEL_SMOOTHING
        ).view_as(labels)
        right = logits.argmax(-1) == labels
        losses = {
            "patch_class": entropy[objects].mean() + BACKGROUND_WEIGHT * entropy[~objects].mean(),
            "patch_accuracy": right[objects].float().mean().detach(),
        }
        if self.rank is not None:
            ranks = batch["patch_ranks"].flatten(1)  # (B, K * orders)
            ranked = ranks != NO_LABEL
            logits = self.rank(features).float().unflatten(-1, (self.orders, -1)).flatten(1, 2)[ranked]
            losses["patch_rank"] = F.cross_entropy(logits, ranks[ranked], reduction="sum") / max(1, len(logits))
            losses["rank_accuracy"] = (logits.argmax(-1) == ranks[ranked]).sum() / max(1, len(logits))
        if model.box_head is not None:
            with full_precision(image_features):
                boxes, _ = model.box_head(model.base.model.language_model.norm(image_features[objects].float()))
            losses["patch_box"] = box_loss(boxes, batch["patch_boxes"][objects], PRETRAINING)[0]
        return losses


def full_precision(like: torch.Tensor) -> torch.autocast:
    """No autocast: the box head is computed in fp32, as it is served."""
    return torch.autocast(like.device.type, enabled=False)


FIGURES = ("iou", "pointed", "patch_accuracy", "rank_accuracy")


class Objective(nn.Module):
    """The model with its training objective, in the form that transformers' Trainer calls.

    `dense` adds supervision of image features; `expressions` (switched by the curriculum) adds everything at [LOC].
    """

    def __init__(self, model: GroundingModel, weights: LossWeights, dense: DenseSupervision | None = None) -> None:
        super().__init__()
        self.model = model
        self.weights = weights
        self.dense = dense
        self.expressions = True
        self._encode_image = model.encode_image
        self._read: Callable[..., tuple[torch.Tensor, ...]] = (
            model.read_expressions if model.referent_head is None else model.read_states
        )

    def train(self, mode: bool = True) -> "Objective":
        """A frozen vision tower stays in eval mode: the statistics of its batch norms are frozen too."""
        super().train(mode)
        tower = self.model.base.model.vision_tower
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            tower.eval()
        return self

    def compile_steps(self) -> None:
        """Compile both steps for training's fixed shapes; validation goes on to call the model itself."""
        self._encode_image = torch.compile(self._encode_image, dynamic=False)
        self._read = torch.compile(self._read, dynamic=False)

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """Returns `loss` (the plain sum) and each part."""
        model = self.model
        parts: dict[str, torch.Tensor] = {}
        detector = (batch[tensor.name] for tensor in DETECTOR_INPUTS if tensor.name in batch)
        features = self._encode_image(batch["image"], *detector)
        if self.expressions:
            row = (batch["input_ids"], batch["segment_ids"], batch["loc_positions"])
            hidden, attention, *image_states = self._read(*row, features)
            if "labels" in batch:
                parts["text"] = answer_loss(model, hidden, batch["labels"])
            if self.dense is not None:
                parts["point"] = point_loss(attention, batch)
            if model.box_head is not None:
                with full_precision(hidden):
                    grounding = HeadOutputs(*model.box_head(hidden), features, attention)
                parts |= expression_losses(grounding, batch, self.weights)
        if (head := model.referent_head) is not None:
            with full_precision(features):
                if self.expressions:
                    states = States(hidden, attention, *image_states)
                    parts |= referent_losses(head, states, batch)
                    seen = states.image_states
                else:
                    seen = model.base.model.language_model.norm(features.float())
                parts["token_box"] = token_box_loss(head, seen, batch, self.weights)
        if self.dense is not None:
            parts |= self.dense.losses(model, features, batch)
        return {"loss": torch.stack([v for k, v in parts.items() if k not in FIGURES]).sum()} | parts
