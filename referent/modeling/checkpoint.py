"""A checkpoint: a self-describing directory.

referent.json     CheckpointSpec: model spec, head shape, where the base is
tokenizer.json    of `tokenizers`
head.safetensors  the box head; a checkpoint that answers in text has none
adapter/          PEFT adapter, where there is one
base/             LLaVA (transformers layout), unless `base` in referent.json points elsewhere
"""

from pathlib import Path
from shutil import copyfile
from typing import Literal

import torch
from peft import PeftModel
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from referent.core.bundle import TOKENIZER_FILE
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.stem import load_llava

SPEC_FILE, HEAD_FILE, ADAPTER_DIRECTORY, BASE_DIRECTORY = "referent.json", "head.safetensors", "adapter", "base"


class CheckpointError(RuntimeError):
    """A checkpoint directory lacks a part or holds one that does not fit."""


class CheckpointSpec(ModelSpec):
    """The model spec and what is needed to rebuild the modules."""

    base: str = Field(description="LLaVA directory: absolute, or relative to the checkpoint")
    head_dropout: float = 0.1
    has_scores: bool = True
    kind: Literal["head", "generator"] = Field("head", description="box head at [LOC], or generated text")

    @model_validator(mode="after")
    def _has_loc(self) -> "CheckpointSpec":
        if self.kind == "head" and not self.prompt.reads_loc:
            raise ValueError(f"template {self.prompt.template!r} must end with [LOC]: a box head reads there")
        return self


def save_checkpoint(directory: Path, model: GroundingModel, spec: CheckpointSpec, tokenizer_file: Path) -> None:
    """Write a checkpoint; the base's weights only where `spec.base` is "base"."""
    directory.mkdir(parents=True, exist_ok=True)
    if spec.base == BASE_DIRECTORY:
        if isinstance(model.llava, PeftModel):
            raise CheckpointError("an adapted model refers to its base: set spec.base to the base's directory")
        model.base.save_pretrained(directory / BASE_DIRECTORY)
    if isinstance(model.llava, PeftModel):
        model.llava.save_pretrained(directory / ADAPTER_DIRECTORY)
    if model.box_head is not None:
        save_file(model.box_head.state_dict(), directory / HEAD_FILE)
    if tokenizer_file != directory / TOKENIZER_FILE:
        copyfile(tokenizer_file, directory / TOKENIZER_FILE)
    (directory / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n")


def load_checkpoint(
    directory: Path, dtype: torch.dtype | None = torch.float32, trainable: bool = False
) -> tuple[GroundingModel, CheckpointSpec]:
    """Rebuild the model, in eval mode unless `trainable`; the head stays fp32. Raises `CheckpointError`.

    `dtype` None leaves the base's weights as they are stored, mapped from their files.
    """
    spec = load_checkpoint_spec(directory)
    llava: LlavaForConditionalGeneration | PeftModel = load_llava(str(directory / spec.base), dtype)
    head = load_head(directory, spec, llava.config.text_config.hidden_size)
    if (directory / ADAPTER_DIRECTORY).is_dir():
        llava = PeftModel.from_pretrained(llava, str(directory / ADAPTER_DIRECTORY), is_trainable=trainable)
    return GroundingModel(llava, head).train(trainable), spec


def load_checkpoint_spec(directory: Path) -> CheckpointSpec:
    """The spec alone. Raises `CheckpointError`."""
    spec_file = directory / SPEC_FILE
    if not spec_file.is_file():
        raise CheckpointError(f"{directory} is no checkpoint: it has no {SPEC_FILE}")
    return CheckpointSpec.model_validate_json(spec_file.read_text())


def load_head(directory: Path, spec: CheckpointSpec, hidden_size: int) -> BoxHead | None:
    """The box head of a checkpoint; None where it answers in text."""
    if spec.kind == "generator":
        return None
    head = BoxHead(hidden_size, spec.head_dropout, spec.has_scores)
    head.load_state_dict(load_file(directory / HEAD_FILE))
    return head


def load_checkpoint_encoder(directory: Path, spec: ModelSpec) -> PromptEncoder:
    """The prompt encoder with the checkpoint's own tokenizer."""
    return PromptEncoder(spec.prompt, directory / TOKENIZER_FILE, spec.image_tokens)
