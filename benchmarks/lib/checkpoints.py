"""Checkpoints to measure with where no trained one is at hand: random weights of a given shape."""

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
    directory: Path, repository: Path, model: str, text: bool = False, config: LlavaConfig | None = None
) -> Path:
    """A checkpoint with random weights, of mini's shape unless `config` has another, with the tokenizer and sizes of a
    published model; with `text` it writes its boxes. Returns its directory."""
    torch.manual_seed(0)
    config = config or mini_config()
    bundle, _ = load_bundle(repository, model)
    fields = {name: value for name, value in bundle if name in CheckpointSpec.model_fields}
    spec = CheckpointSpec(**fields | {"base": "base"} | (_written(config) if text else {}))
    llava = ConvStemLlava(config)
    head = None if text else BoxHead(config.text_config.hidden_size)
    tokenizer_file = repository / model / bundle.version / TOKENIZER_FILE
    save_checkpoint(directory, GroundingModel(llava, head).eval(), spec, tokenizer_file)
    return directory


def wide_config(hidden: int = 1024, layers: int = 8, vocabulary: int = 32_064) -> LlavaConfig:
    """mini's images before a language model that weighs something, with the vocabulary of LLaVA-1.5."""
    config = mini_config()
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden, 11 * hidden // 4, layers
    text.num_attention_heads = text.num_key_value_heads = hidden // 64
    text.head_dim, text.vocab_size = 64, vocabulary
    return config


def _written(config: LlavaConfig) -> dict[str, object]:
    grammar = BoxGrammar(order="xyxy")
    generation = Generation(grammar=grammar, eos_token_id=config.text_config.eos_token_id)
    return {"kind": "generator", "generation": generation, "present_threshold": None}
