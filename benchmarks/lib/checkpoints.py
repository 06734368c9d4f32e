"""Checkpoints to measure with where no trained one is at hand: random weights of a given shape."""

from pathlib import Path

import torch

from referent.mini.shape import mini_config
from referent.modeling.checkpoint import CheckpointSpec, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.stem import ConvStemLlava


def save_random(directory: Path, spec: CheckpointSpec, tokenizer_file: Path) -> Path:
    """A checkpoint with random weights, of mini's shape; returns its directory."""
    torch.manual_seed(0)
    llava = ConvStemLlava(mini_config())
    head = None if spec.kind == "generator" else BoxHead(llava.config.text_config.hidden_size)
    model = GroundingModel(llava, head).eval()
    save_checkpoint(directory, model, spec.model_copy(update={"base": "base"}), tokenizer_file)
    return directory
