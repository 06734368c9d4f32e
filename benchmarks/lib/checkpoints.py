"""Checkpoints with random weights of a given shape, for measuring without a trained one."""

from pathlib import Path

import torch
from transformers import LlavaConfig

from referent.core.bundle import TOKENIZER_FILE, load_bundle
from referent.core.grammar import BoxGrammar, Generation
from referent.mini.shape import mini_config
from referent.modeling.checkpoint import CheckpointSpec, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.stem import ConvStemLlava


def save_random(
    directory: Path, spec: CheckpointSpec, tokenizer_file: Path, config: LlavaConfig | None = None, seed: int = 0
) -> Path:
    """A checkpoint with random weights, of mini's shape unless `config` has another; returns its directory."""
    torch.manual_seed(seed)
    llava = ConvStemLlava(config or mini_config())
    head = None if spec.kind == "generator" else BoxHead(llava.config.text_config.hidden_size)
    model = GroundingModel(llava, head).eval()
    save_checkpoint(directory, model, spec.model_copy(update={"base": "base"}), tokenizer_file)
    return directory


def spec_like(repository: Path, model: str, text: bool = False) -> tuple[CheckpointSpec, Path]:
    """The sizes of a published model, and its tokenizer; with `text`, of one that writes its boxes instead."""
    bundle, _ = load_bundle(repository, model)
    fields = {name: value for name, value in bundle if name in CheckpointSpec.model_fields}
    if text:
        generation = Generation(grammar=BoxGrammar(order="xyxy"), eos_token_id=mini_config().text_config.eos_token_id)
        fields |= {"kind": "generator", "generation": generation, "present_threshold": None}
    return CheckpointSpec(**fields, base="base"), repository / model / bundle.version / TOKENIZER_FILE


def wide_config() -> LlavaConfig:
    """mini's vision encoder with a larger language model, which has the vocabulary of LLaVA-1.5."""
    config = mini_config()
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 1024, 2816, 8
    text.num_attention_heads = text.num_key_value_heads = 16
    text.head_dim, text.vocab_size = 64, 32_064
    return config
