"""The part that all kinds begin with."""

import torch
from torch import nn

from referent.modeling.grounding import GroundingModel


class VisionEncoder(nn.Module):
    """image -> image_features."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(image)
