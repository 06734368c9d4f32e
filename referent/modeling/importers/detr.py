"""DETR with ResNet-101 as its authors publish it, and new visual position prompts around it.

VPP-LLaVA's training starts from it: a file such as detr-r101-2c7b67e5.pth.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from referent.modeling.importers.vpp_llava import DETECTOR, convert, visual_prompts_shape
from referent.modeling.vpp import VisualPrompts, draw_axis
from referent.modeling.weights import CheckpointError, Weights, check_weights, reading, refuse_pointer

HEADS = ("class_embed.", "bbox_embed.")  # what reads DETR's queries; the language model does so here
COUNTS = ".num_batches_tracked"  # of batch norms that were not frozen
PREFIX = "visual_prompts.detector."


def load_visual_prompts(file: Path, image_size: int, hidden_size: int) -> VisualPrompts:
    """Prompts whose detector has the weights of `file`, with an axis as it is drawn and a random projector.

    Raises `CheckpointError`.
    """
    weights = _load(file)
    with reading(file):
        weights = convert({DETECTOR + name: tensor.float() for name, tensor in weights.items()})
        prompts = VisualPrompts(image_size, hidden_size, visual_prompts_shape(weights))
        found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
        check_weights(str(file), prompts.detector.state_dict(), found, "it is no DETR with ResNet-101, or damaged")
        prompts.detector.load_state_dict(found)
    prompts.axis.prompt.data.copy_(draw_axis(image_size))
    return prompts


def _load(file: Path) -> Weights:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: name a file of DETR's weights, such as detr-r101-2c7b67e5.pth")
    refuse_pointer(file)
    with reading(file):
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            weights = content.get("model", content)
        return {
            name: tensor for name, tensor in weights.items() if not name.startswith(HEADS) and not name.endswith(COUNTS)
        }
