"""The first part of models of all kinds."""

import torch
from torch import nn

from export.graphs import Part, Tensors
from referent.core.contract import DETECTOR_FRAME, DETECTOR_IMAGE, IMAGE, PROMPTED_ENCODER, VISION_ENCODER
from referent.core.spec import ModelSpec
from referent.modeling.grounding import GroundingModel


class VisionEncoder(nn.Module):
    """image -> image_features; of a model with a detector image, detector_image, detector_frame."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor, *detector: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(image, *detector)


def vision_part(model: GroundingModel) -> Part:
    """The vision encoder as this model has it."""
    step = PROMPTED_ENCODER if model.has_detector else VISION_ENCODER
    return Part(step, VisionEncoder(model), step.outputs)


def example_pictures(spec: ModelSpec, batch: int, generator: torch.Generator) -> Tensors:
    """Random inputs of the vision encoder; the second picture is a landscape one, a portrait one, and so on."""

    def noise(size: int) -> torch.Tensor:
        return torch.randint(0, 256, (batch, size, size, 3), generator=generator).to(torch.uint8)

    pictures = {IMAGE.name: noise(spec.image.size)}
    if (detector := spec.detector_image) is not None:
        sizes = [(4, 3), (3, 4)] * batch
        frames = torch.tensor([detector.extent(size) for size in sizes[:batch]], dtype=torch.int32)
        pictures |= {DETECTOR_IMAGE.name: noise(detector.size), DETECTOR_FRAME.name: frames}
    return pictures
