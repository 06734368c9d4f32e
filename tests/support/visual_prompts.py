"""A tiny model with visual position prompts: real components, random weights."""

from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer

from referent.core.spec import ModelSpec
from referent.core.transform import ImageTransform
from referent.modeling.checkpoint import load_checkpoint, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.importers.vpp_llava import TEMPLATE
from referent.modeling.llava import add_visual_prompts, llava_spec
from referent.modeling.vpp import VisualPrompts, VisualPromptsShape
from tests.support.text_model import text_llava
from tests.support.text_tokenizer import write_text_tokenizer

TINY_SHAPE = VisualPromptsShape(stage_layers=(1, 1, 1, 1), stage_sizes=(16, 16, 16, 32), feed_forward_size=16)

SMALLEST_SHAPE = TINY_SHAPE.model_copy(update={"layers": 1, "queries": 5, "detector_size": 64})
AXIS_ALONE = TINY_SHAPE.model_copy(update={"queries": 0})


def detector_tensors(image: Image.Image, spec: ModelSpec) -> tuple[torch.Tensor, ...]:
    """What `GroundingModel.encode_image` takes, of one image."""
    assert spec.detector_image
    return (
        torch.from_numpy(spec.image.apply(image))[None],
        torch.from_numpy(spec.detector_image.apply(image))[None],
        torch.tensor([spec.detector_image.extent(image.size)], dtype=torch.int32),
    )


def tiny_prompts(image_size: int, hidden_size: int, shape: VisualPromptsShape = TINY_SHAPE) -> VisualPrompts:
    """Random weights, large enough that the pictures matter."""
    torch.manual_seed(0)
    prompts = VisualPrompts(image_size, hidden_size, shape).eval()
    for parameter in prompts.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    torch.nn.init.normal_(prompts.axis.prompt)
    return prompts


def save_prompted_checkpoint(
    directory: Path, checkpoint: Path, adapted: bool = True, shape: VisualPromptsShape = TINY_SHAPE
) -> Path:
    """A copy of a tiny checkpoint, with visual prompts in front of it, and without its adapter if told so."""
    model, spec = load_checkpoint(checkpoint)
    if not adapted:
        model.llava = model.llava.unload()
    model.visual_prompts = tiny_prompts(spec.image.size, model.base.config.text_config.hidden_size, shape)
    padded = spec.model_copy(update={"image": ImageTransform(mode="pad", size=spec.image.size)})
    spec = add_visual_prompts(padded, shape)
    save_checkpoint(directory, model, spec, checkpoint / "tokenizer.json")
    return directory


def save_llava(directory: Path) -> Path:
    """A tiny LLaVA as it is published, with a tokenizer that spells boxes."""
    text_llava().save_pretrained(directory)
    write_text_tokenizer(directory / "tokenizer.json")
    return directory


def save_writing_checkpoint(directory: Path, llava: Path) -> Path:
    """A checkpoint on `save_llava`'s that answers in text, as the import of VPP-LLaVA writes it."""
    tokenizer = llava / "tokenizer.json"
    spec = llava_spec(
        llava, Tokenizer.from_file(str(tokenizer)), template=TEMPLATE, kind="generator", visual_prompts=SMALLEST_SHAPE
    )
    model = GroundingModel(text_llava(), None, tiny_prompts(spec.image.size, 64, SMALLEST_SHAPE))
    save_checkpoint(directory, model, spec.model_copy(update={"base": "base", "present_threshold": 0.0}), tokenizer)
    return directory
