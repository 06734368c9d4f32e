"""A tiny model with visual position prompts: real components, random weights."""

from pathlib import Path

import torch
from PIL import Image

from referent.core.packing import Bucket
from referent.core.spec import ModelSpec
from referent.core.transform import ImageTransform
from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint, save_checkpoint
from referent.modeling.vpp import DETECTOR_IMAGE, QUERIES, VisualPrompts, VisualPromptsShape

TINY_SHAPE = VisualPromptsShape(stage_layers=(1, 1, 1, 1), stage_sizes=(16, 16, 16, 32), feed_forward_size=16)


def detector_tensors(image: Image.Image, spec: ModelSpec) -> tuple[torch.Tensor, ...]:
    """What `GroundingModel.encode_image` takes, of one image."""
    assert spec.detector_image
    return (
        torch.from_numpy(spec.image.apply(image))[None],
        torch.from_numpy(spec.detector_image.apply(image))[None],
        torch.tensor([spec.detector_image.extent(image.size)], dtype=torch.int32),
    )


def tiny_prompts(image_size: int, hidden_size: int) -> VisualPrompts:
    """Random weights, large enough that the pictures matter."""
    torch.manual_seed(0)
    prompts = VisualPrompts(image_size, hidden_size, TINY_SHAPE).eval()
    for parameter in prompts.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    torch.nn.init.normal_(prompts.axis.prompt)
    return prompts


def save_prompted_checkpoint(directory: Path, checkpoint: Path) -> Path:
    """A copy of a tiny checkpoint, with visual prompts in front of it."""
    model, spec = load_checkpoint(checkpoint)
    model.visual_prompts = tiny_prompts(spec.image.size, model.base.config.text_config.hidden_size)
    prompted = {
        "image": ImageTransform(mode="pad", size=spec.image.size),
        "detector_image": DETECTOR_IMAGE,
        "visual_prompts": TINY_SHAPE,
        "image_tokens": spec.image_tokens + QUERIES,
        "buckets": tuple(Bucket(bucket.tokens + QUERIES, bucket.expressions) for bucket in spec.buckets),
    }
    spec = CheckpointSpec(**spec.model_dump() | prompted)
    save_checkpoint(directory, model, spec, checkpoint / "tokenizer.json")
    return directory
