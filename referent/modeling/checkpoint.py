"""A checkpoint: a self-describing directory.

referent.json     CheckpointSpec: model spec, head shape, where the base is
tokenizer.json    of `tokenizers`
head.safetensors  the box head
adapter/          PEFT adapter, where there is one
base/             LLaVA (transformers layout), unless `base` in referent.json points elsewhere
"""

from pathlib import Path
from shutil import copyfile

import torch
from peft import PeftModel
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from referent.bundle import TOKENIZER_FILE, ModelSpec
from referent.modeling.grounding import BoxHead, GroundingModel
from referent.modeling.stem import load_llava
from referent.prompts import PromptEncoder

SPEC_FILE, HEAD_FILE, ADAPTER_DIRECTORY, BASE_DIRECTORY = "referent.json", "head.safetensors", "adapter", "base"


class CheckpointError(RuntimeError):
    """A checkpoint directory lacks a part or holds one that does not fit."""


class CheckpointSpec(ModelSpec):
    """The model spec and what is needed to rebuild the modules."""

    base: str = Field(description="LLaVA directory: absolute, or relative to the checkpoint")
    head_dropout: float = 0.1
    has_scores: bool = True


def save_checkpoint(directory: Path, model: GroundingModel, spec: CheckpointSpec, tokenizer_file: Path) -> None:
    """Write a checkpoint; the base's weights only where `spec.base` is "base"."""
    directory.mkdir(parents=True, exist_ok=True)
    if spec.base == BASE_DIRECTORY:
        if isinstance(model.llava, PeftModel):
            raise CheckpointError("an adapted model refers to its base: set spec.base to the base's directory")
        model.base.save_pretrained(directory / BASE_DIRECTORY)
    if isinstance(model.llava, PeftModel):
        model.llava.save_pretrained(directory / ADAPTER_DIRECTORY)
    save_file(model.box_head.state_dict(), directory / HEAD_FILE)
    if tokenizer_file != directory / TOKENIZER_FILE:
        copyfile(tokenizer_file, directory / TOKENIZER_FILE)
    (directory / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n")


def load_checkpoint(
    directory: Path, dtype: torch.dtype = torch.float32, trainable: bool = False
) -> tuple[GroundingModel, CheckpointSpec]:
    """Rebuild the model, in eval mode unless `trainable`; the head stays fp32. Raises `CheckpointError`."""
    spec_file = directory / SPEC_FILE
    if not spec_file.is_file():
        raise CheckpointError(f"{directory} is no checkpoint: it has no {SPEC_FILE}")
    spec = CheckpointSpec.model_validate_json(spec_file.read_text())
    llava: LlavaForConditionalGeneration | PeftModel = load_llava(str(directory / spec.base), dtype)
    head = BoxHead(llava.config.text_config.hidden_size, spec.head_dropout, spec.has_scores)
    head.load_state_dict(load_file(directory / HEAD_FILE))
    if (directory / ADAPTER_DIRECTORY).is_dir():
        llava = PeftModel.from_pretrained(llava, str(directory / ADAPTER_DIRECTORY), is_trainable=trainable)
    return GroundingModel(llava, head).train(trainable), spec


def load_checkpoint_encoder(directory: Path, spec: ModelSpec) -> PromptEncoder:
    """The prompt encoder with the checkpoint's own tokenizer."""
    return PromptEncoder(spec.prompt, directory / TOKENIZER_FILE, spec.image_tokens)
