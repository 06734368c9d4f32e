"""Visual position prompts of VPP-LLaVA (arXiv 2503.15426), which show positions to a LLaVA in two ways.

Globally an axis is drawn over the image's border; locally the queries of a detector, DETR with ResNet-101, follow the
features of CLIP. DETR's parts are those of transformers, with its names.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import DetrConfig, ResNetConfig
from transformers.models.detr.modeling_detr import (
    DetrDecoder,
    DetrEncoder,
    DetrSinePositionEmbedding,
    replace_batch_norm,
)
from transformers.models.resnet.modeling_resnet import ResNetBottleNeckLayer, ResNetEmbeddings

from referent.core.transform import ImageTransform

DETECTOR_IMAGE = ImageTransform(mode="letterbox", size=640, pad_rgb=(0, 0, 0), resample="bilinear")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
QUERY_SIZE = 256
STRIDE = 32  # of ResNet, pixels to a feature
AXIS_SHARE = 0.05  # of the pixels that are seen
AXIS_BORDER = 30 / 336  # how wide a border it covers, of the image's side
PROJECTOR_SIZE = 1024
CLIP_SIDE, TICK, LABEL_AT, FONT_SIZE = 336, 10, 19, 10  # of the axis as it is drawn at first, pixels of CLIP's side
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # channel statistics of openai/clip-vit-large-patch14-336
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VisualPromptsShape(BaseModel):
    """Sizes that the code of VPP-LLaVA fixes, as published; smaller ones are for small models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage_layers: tuple[int, int, int, int] = (3, 4, 23, 3)  # ResNet-101
    stage_sizes: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    reduction: int = 4  # of a stage's size within its layers
    feed_forward_size: int = 2048
    layers: int = Field(6, gt=0, description="of the detector's encoder, and of its decoder")
    queries: int = Field(100, ge=0, description="of the detector; 0: there is none, the axis is the only prompt")
    detector_size: int = Field(DETECTOR_IMAGE.size, gt=0, multiple_of=STRIDE, description="side of its picture, pixels")

    @property
    def detector_image(self) -> ImageTransform | None:
        """How an image becomes the detector's picture, where there is one."""
        return DETECTOR_IMAGE.model_copy(update={"size": self.detector_size}) if self.queries else None


class Axis(nn.Module):
    """The picture of an axis, which is learned, over the border of another picture."""

    mask: torch.Tensor
    nearest: torch.Tensor

    def __init__(self, size: int, detector_size: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(3, size, size))
        mask = torch.ones(size, size)
        border = round(AXIS_BORDER * size)
        mask[border : size - border, border : size - border] = 0
        self.register_buffer("mask", mask, persistent=False)
        # torch's nearest neighbours: its float32 arithmetic is one less than the exact one at seven of 640 places
        nearest = (torch.arange(detector_size) * torch.tensor(size / detector_size)).floor().long()
        self.register_buffer("nearest", nearest, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S), normalised, of the image or the detector's -> the same, a little fainter, with the axis.

        The axis is normalised as CLIP's pixels are, over both.
        """
        axis = self.prompt * self.mask
        if pixels.shape[-1] != axis.shape[-1]:
            axis = axis[:, self.nearest][:, :, self.nearest]
        return (1 - AXIS_SHARE) * pixels + AXIS_SHARE * axis


def draw_axis(size: int) -> torch.Tensor:
    """The axis before training, (3, S, S), normalised like CLIP's pixels: a white sheet with a frame, and ticks with
    numbers from 0.1 to 0.9 on its four sides."""
    scale = size / CLIP_SIDE
    tick, label, last = round(TICK * scale), LABEL_AT * scale, size - 1
    sheet = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, last, last), outline="black")
    font = ImageFont.load_default(FONT_SIZE * scale)
    for tenth in range(1, 10):
        at = tenth * size // 10 - 1
        for line in ((at, 0, at, tick), (at, last - tick, at, last), (0, at, tick, at), (last - tick, at, last, at)):
            draw.line(line, fill="black")
        for place in ((at, label), (at, last - label), (label, at), (last - label, at)):
            draw.text(place, f"0.{tenth}", fill="black", font=font, anchor="mm")
    pixels = torch.from_numpy(np.array(sheet)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


class Detector(nn.Module):
    """DETR up to its queries: (B, 3, R, R) -> (B, Q, 256). Nothing is masked, not even padding."""

    def __init__(self, shape: VisualPromptsShape) -> None:
        super().__init__()
        config = DetrConfig(
            encoder_ffn_dim=shape.feed_forward_size, decoder_ffn_dim=shape.feed_forward_size,
            encoder_layers=shape.layers, decoder_layers=shape.layers,
        )  # fmt: skip
        stem = ResNetEmbeddings(ResNetConfig())
        inputs = (ResNetConfig().embedding_size, *shape.stage_sizes)
        stages = [
            nn.Sequential(
                *(
                    ResNetBottleNeckLayer(
                        size if layer else before, size, 1 if layer else stride, "relu", shape.reduction
                    )
                    for layer in range(depth)
                )
            )
            for before, size, depth, stride in zip(
                inputs, shape.stage_sizes, shape.stage_layers, (1, 2, 2, 2), strict=False
            )
        ]
        self.backbone = nn.Sequential(stem, *stages)
        replace_batch_norm(self.backbone)
        self.input_projection = nn.Conv2d(shape.stage_sizes[-1], QUERY_SIZE, kernel_size=1)
        self.query_position_embeddings = nn.Embedding(shape.queries, QUERY_SIZE)
        self.encoder, self.decoder = DetrEncoder(config), DetrDecoder(config)
        side = shape.detector_size // STRIDE
        positions = DetrSinePositionEmbedding(QUERY_SIZE // 2, normalize=True)(
            torch.Size((1, QUERY_SIZE, side, side)), "cpu", torch.float32
        )
        self.register_buffer("positions", positions.flatten(2).transpose(1, 2), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.input_projection(self.backbone(pixels)).flatten(2).transpose(1, 2)  # (B, K, 256)
        positions = self.positions.to(features.dtype).expand_as(features)
        encoded = self.encoder(inputs_embeds=features, spatial_position_embeddings=positions).last_hidden_state
        queries = self.query_position_embeddings.weight.expand(pixels.shape[0], -1, -1)
        return self.decoder(
            inputs_embeds=torch.zeros_like(queries), object_queries_position_embeddings=queries,
            encoder_hidden_states=encoded, spatial_position_embeddings=positions,
        ).last_hidden_state  # fmt: skip


class VisualPrompts(nn.Module):
    """The axis and, if the shape has queries, the detector and the projector from them to the language model's
    embeddings. Computes in fp32."""

    def __init__(self, image_size: int, hidden_size: int, shape: VisualPromptsShape) -> None:
        super().__init__()
        self.shape = shape
        self.axis = Axis(image_size, shape.detector_size)
        if shape.queries:
            self.detector = Detector(shape)
            self.projector = nn.Sequential(
                nn.Linear(QUERY_SIZE, PROJECTOR_SIZE), nn.GELU(), nn.Linear(PROJECTOR_SIZE, hidden_size)
            )
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, detector_image: torch.Tensor, detector_frame: torch.Tensor) -> torch.Tensor:
        """(B, R, R, 3) uint8 RGB and x0, y0, x1, y1 (B, 4) of what is not padding -> features (B, Q, D)."""
        return self.projector(self.detector(self.axis(self.detector_pixels(detector_image, detector_frame))))

    def detector_pixels(self, detector_image: torch.Tensor, detector_frame: torch.Tensor) -> torch.Tensor:
        """As `forward` -> (B, 3, R, R) as the detector was trained on it, zeros in the padding."""
        pixels = (detector_image.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        at = torch.arange(pixels.shape[-1], device=pixels.device)
        x0, y0, x1, y1 = detector_frame[:, :, None].unbind(1)  # (B, 1)
        columns, rows = (at >= x0) & (at < x1), (at >= y0) & (at < y1)
        return torch.where((rows[:, :, None] & columns[:, None])[:, None], pixels, 0.0)
