"""What reads an answer off a hidden state."""

import torch
from torch import nn


class BoxHead(nn.Module):
    """Hidden state of [LOC] -> box and, where trained, score. Always computed in fp32.

    Where no `widths` of the two hidden layers are given, the shape is visual-grounding-api's D, D/8, D/16, 4
    (4096-512-256-4); small models keep at least 256 wide layers.
    """

    def __init__(
        self, hidden_size: int, dropout: float = 0.1, scores: bool = True, widths: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        wide, narrow = widths or (max(256, hidden_size // 8), max(256, hidden_size // 16))
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, wide), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(wide, narrow), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(narrow, 4),
        )  # fmt: skip
        self.score = nn.Linear(hidden_size, 1) if scores else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(..., D) of any dtype -> boxes (..., 4) in 0..1, score logits (...) or None."""
        hidden_states = hidden_states.float()
        scores = None if self.score is None else self.score(hidden_states).squeeze(-1)
        return self.mlp(hidden_states).sigmoid(), scores
