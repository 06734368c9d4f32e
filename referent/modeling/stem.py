"""A convolutional stem in place of CLIP's single patch convolution, for small models trained from scratch.

Strided convolutions see edges and textures before patches are cut; early training is several times faster than with
one large patch convolution (Xiao et al. 2021, "Early convolutions help transformers see better").
"""

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration


class ConvStem(nn.Module):
    """(B, 3, S, S) -> (B, width, S/24, S/24): strides 2, 2, 2, 3 with residual blocks at 1/8 and 1/24."""

    STRIDE = 24

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(3, 24, 2),
            *_convolution(24, 48, 2),
            *_convolution(48, 96, 2),
            _Residual(96, 2),
            *_convolution(96, width, 3),
            _Residual(width, 1),
            nn.Conv2d(width, width, 1),
        )

    @property
    def weight(self) -> torch.Tensor:
        """CLIP's embeddings cast pixels to the dtype of `patch_embedding.weight`."""
        return self.layers[-1].weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values.contiguous(memory_format=torch.channels_last))


class _Residual(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        blocks = [_convolution(channels, channels, 1) for _ in range(depth)]
        self.layers = nn.Sequential(*[layer for block in blocks for layer in block][:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x + self.layers(x))


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=0 if stride == 3 else 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class ConvStemLlava(LlavaForConditionalGeneration):
    """LLaVA whose CLIP tower starts with a `ConvStem`; its config's architectures name this class."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        vision = config.vision_config
        if vision.patch_size != ConvStem.STRIDE:
            raise ValueError(f"vision_config.patch_size is {vision.patch_size}; ConvStem needs {ConvStem.STRIDE}")
        self.model.vision_tower.embeddings.patch_embedding = ConvStem(vision.hidden_size)
