"""Muon for the matrices of hidden layers and AdamW for everything else, as one optimizer."""

from typing import Any

import torch
from torch import nn


class MuonAndAdamW(torch.optim.Optimizer):
    """Both parts have one learning rate: Muon's updates are scaled to the size of AdamW's ("match_rms_adamw")."""

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        embeddings = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        matrices = [p for p in parameters if p.ndim == 2 and min(p.shape) > 4 and p not in embeddings]
        others = [p for p in parameters if all(p is not m for m in matrices)]
        self._parts = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [
                    {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
                    {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=learning_rate,
                betas=(0.9, 0.98),
            ),
        ]
        super().__init__(parameters, {"lr": learning_rate})
        self.param_groups = [group for part in self._parts for group in part.param_groups]  # shared with the parts

    def step(self, closure: Any = None) -> None:
        """One step of both."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """State of both parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts; the groups stay shared."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
