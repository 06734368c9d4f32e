"""A checkpoint: a self-describing directory.

referent.json     CheckpointSpec: model spec, head shape, where the base is
tokenizer.json    of `tokenizers`
head.safetensors  the box head or the referent head; a checkpoint that answers in text has none
visual_prompts.safetensors  of a model that has them
adapter/          PEFT adapter, if there is one
base/             LLaVA (transformers layout), unless `base` in referent.json points elsewhere

An incomplete checkpoint is refused (`referent.modeling.weights`).
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from shutil import copyfile
from typing import Literal

import torch
from peft import PeftModel
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlavaConfig, PaliGemmaConfig

from referent.core.bundle import TOKENIZER_FILE
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.modeling.grounding import GroundingModel, image_tokens_of
from referent.modeling.heads import BoxHead, ReferentHead
from referent.modeling.siglip_gemma import PaliGemma
from referent.modeling.vpp import VisualPrompts, VisualPromptsShape
from referent.modeling.weights import CheckpointError as CheckpointError
from referent.modeling.weights import (
    VisionLanguageModel,
    base_digest,
    check_weights,
    load_adapter,
    load_base,
    reading,
    refuse_pointer,
    refuse_pointers,
)

SPEC_FILE, HEAD_FILE, ADAPTER_DIRECTORY, BASE_DIRECTORY = "referent.json", "head.safetensors", "adapter", "base"
VISUAL_PROMPTS_FILE = "visual_prompts.safetensors"


class CheckpointSpec(ModelSpec):
    """The model spec and what is needed to rebuild the modules."""

    base: str = Field(description="LLaVA directory: absolute, or relative to the checkpoint")
    base_digest: str | None = Field(None, description="of a base elsewhere (`weights.base_digest`); None: not known")
    adapter: bool | None = Field(None, description="whether there is an adapter; None: as it is found")
    head_widths: tuple[int, int] | None = Field(None, description="of the hidden layers; None: as the head has them")
    head_dropout: float = 0.1
    has_scores: bool = True
    visual_prompts: VisualPromptsShape | None = Field(None, description="sizes of its visual position prompts, if any")
    kind: Literal["head", "referents", "generator"] = Field("head", description="a head at [LOC], or generated text")

    @model_validator(mode="after")
    def _has_loc(self) -> "CheckpointSpec":
        if self.kind != "generator" and not self.prompt.reads_loc:
            raise ValueError(f"template {self.prompt.template!r} must end with [LOC]: a head reads there")
        if self.kind == "referents":
            if None in (self.present_threshold, self.referent_threshold):
                raise ValueError("a checkpoint of kind 'referents' has `present_threshold` and `referent_threshold`")
            if self.box_frame != "transformed":
                raise ValueError("a referent head counts in the square that the model sees: box_frame is 'transformed'")
            if self.visual_prompts is not None:
                raise ValueError("a referent head needs a grid of image tokens: visual position prompts add others")
            if isqrt(self.image_tokens) ** 2 != self.image_tokens:
                raise ValueError(f"{self.image_tokens} image tokens are not square: a referent head needs a grid")
        if (self.kind == "generator") != (self.generation is not None):
            raise ValueError(f"a checkpoint of kind {self.kind!r} has `generation` exactly if it answers in text")
        detector = None if self.visual_prompts is None else self.visual_prompts.detector_image
        if (detector and detector.size) != (self.detector_image and self.detector_image.size):
            raise ValueError("`visual_prompts` and `detector_image` belong together: give both, of one size, or none")
        return self

    @property
    def queries(self) -> int:
        """Number of the detector's queries, which follow the image's features."""
        return 0 if self.visual_prompts is None else self.visual_prompts.queries

    @property
    def bidirectional(self) -> bool:
        """Whether prompt tokens attend to later ones."""
        return self.generation is not None and self.generation.bidirectional


def save_checkpoint(directory: Path, model: GroundingModel, spec: CheckpointSpec, tokenizer_file: Path) -> None:
    """Write a checkpoint that everyone may read; with the base's weights only if `spec.base` is "base"."""
    directory.mkdir(parents=True, exist_ok=True)
    adapted = isinstance(model.llava, PeftModel)
    own = spec.base == BASE_DIRECTORY
    if own:
        if adapted:
            raise CheckpointError("an adapted model refers to its base: set spec.base to the base's directory")
        model.base.save_pretrained(directory / BASE_DIRECTORY)
    if adapted:
        model.llava.save_pretrained(directory / ADAPTER_DIRECTORY)
    head = model.referent_head if spec.kind == "referents" else model.box_head
    if head is not None:
        save_file(head.state_dict(), directory / HEAD_FILE)
    if model.visual_prompts is not None:
        save_file(model.visual_prompts.state_dict(), directory / VISUAL_PROMPTS_FILE)
    if tokenizer_file != directory / TOKENIZER_FILE:
        copyfile(tokenizer_file, directory / TOKENIZER_FILE)
    found = {"adapter": adapted, "base_digest": None if own else base_digest(directory / spec.base)}
    spec = spec.model_copy(update=found)
    (directory / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n")
    for path in (directory, *directory.rglob("*")):  # safetensors lets only the owner read what it writes
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def new_checkpoint(out: Path) -> Iterator[Path]:
    """A folder to write a checkpoint to, which becomes `out` at the end; it is removed if the block raises.

    Raises `CheckpointError` if `out` already exists.
    """
    if out.exists():
        raise CheckpointError(f"{out} is there already: name another folder, or remove it")
    existing = next(parent for parent in out.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=existing) as temporary:
        directory = Path(temporary) / "new"
        directory.mkdir()
        yield directory
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(directory, out)


def load_checkpoint(
    directory: Path, dtype: torch.dtype | None = torch.float32, trainable: bool = False
) -> tuple[GroundingModel, CheckpointSpec]:
    """Rebuild the model, in eval mode unless `trainable`; head and visual prompts stay fp32. Raises `CheckpointError`.

    `dtype` None leaves the base's weights as they are stored, mapped from their files.
    """
    spec = load_checkpoint_spec(directory)
    tokenizer = load_tokenizer(directory)
    if not (directory / spec.base).is_dir():
        raise CheckpointError(
            f"{directory} needs the base {spec.base}, which is not there: set `base` in its {SPEC_FILE}"
        )
    llava: VisionLanguageModel | PeftModel = load_base(directory / spec.base, dtype)
    check_base(directory, spec, llava.config, tokenizer)
    if spec.base_digest not in (None, base_digest(directory / spec.base)):
        raise CheckpointError(
            f"{directory} was trained on another base than {spec.base}: set `base` in {SPEC_FILE} to it"
        )
    head = load_head(directory, spec, llava.config.text_config.hidden_size)
    adapted = (directory / ADAPTER_DIRECTORY).is_dir()
    if spec.adapter not in (None, adapted):
        found = "holds an adapter, and was saved without one" if adapted else f"lacks its {ADAPTER_DIRECTORY}/"
        raise CheckpointError(f"{directory} {found}: copy the whole checkpoint again")
    if adapted:
        llava = load_adapter(llava, directory / ADAPTER_DIRECTORY, trainable)
    model = make_model(llava, head)
    model.visual_prompts = load_visual_prompts(directory, spec, llava.config)
    return model.train(trainable), spec


def make_model(base: VisionLanguageModel | PeftModel, head: BoxHead | ReferentHead | None) -> GroundingModel:
    """The grounding model of the base's family."""
    if isinstance(head, ReferentHead):
        return GroundingModel(base, None, referent_head=head)
    paligemma = base.config.model_type == PaliGemmaConfig.model_type
    return PaliGemma(base, head) if paligemma else GroundingModel(base, head)


def load_checkpoint_spec(directory: Path) -> CheckpointSpec:
    """The spec alone. Raises `CheckpointError`."""
    spec_file = directory / SPEC_FILE
    if not spec_file.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint: it has no {SPEC_FILE}")
    refuse_pointers(directory)
    with reading(spec_file):
        return CheckpointSpec.model_validate_json(spec_file.read_text())


def load_tokenizer(directory: Path) -> Tokenizer:
    """The directory's tokenizer.json. Raises `CheckpointError`."""
    refuse_pointer(directory / TOKENIZER_FILE)
    with reading(directory / TOKENIZER_FILE):
        return Tokenizer.from_file(str(directory / TOKENIZER_FILE))


def load_checkpoint_encoder(directory: Path, spec: ModelSpec) -> PromptEncoder:
    """The prompt encoder with the checkpoint's own tokenizer. Raises `CheckpointError`."""
    with reading(directory / TOKENIZER_FILE):
        return PromptEncoder(spec.prompt, directory / TOKENIZER_FILE, spec.image_tokens)


def make_head(spec: CheckpointSpec, hidden_size: int) -> BoxHead | ReferentHead | None:
    """A new head of the spec's shape; None if the model answers in text."""
    if spec.kind == "generator":
        return None
    if spec.kind == "referents":
        return ReferentHead(hidden_size, spec.image_tokens, spec.head_dropout, spec.head_widths)
    return BoxHead(hidden_size, spec.head_dropout, spec.has_scores, spec.head_widths)


def load_head(directory: Path, spec: CheckpointSpec, hidden_size: int) -> BoxHead | ReferentHead | None:
    """The head of a checkpoint; None if it answers in text. Raises `CheckpointError`."""
    head = make_head(spec, hidden_size)
    if head is None:
        return None
    file = directory / HEAD_FILE
    with reading(file):
        weights = load_file(file)
    check_weights(str(file), head.state_dict(), weights, "it is of another checkpoint, copy the whole one again")
    head.load_state_dict(weights)
    return head


def load_visual_prompts(
    directory: Path, spec: CheckpointSpec, config: LlavaConfig | PaliGemmaConfig
) -> VisualPrompts | None:
    """The visual position prompts of a checkpoint; None if it has none. Raises `CheckpointError`."""
    if spec.visual_prompts is None:
        return None
    file = directory / VISUAL_PROMPTS_FILE
    prompts = VisualPrompts(config.vision_config.image_size, config.text_config.hidden_size, spec.visual_prompts)
    with reading(file):
        weights = load_file(file)
    check_weights(str(file), prompts.state_dict(), weights, "it is of another checkpoint, copy the whole one again")
    prompts.load_state_dict(weights, assign=True)
    return prompts


def check_base(
    directory: Path, spec: CheckpointSpec, config: LlavaConfig | PaliGemmaConfig, tokenizer: Tokenizer
) -> None:
    """Raises `CheckpointError` unless a checkpoint's spec and tokenizer fit this base."""
    prompt, rows = spec.prompt, config.text_config.vocab_size
    special = (prompt.pad_token_id, prompt.bos_token_id, prompt.loc_token_id)
    highest = max(*(token or 0 for token in special), *tokenizer.get_vocab().values())
    for what, own, base in (
        ("a prompt that sees itself", spec.bidirectional, config.model_type == PaliGemmaConfig.model_type),
        ("images of side", spec.image.size, config.vision_config.image_size),
        ("tokens an image", spec.image_tokens, image_tokens_of(config) + spec.queries),
        ("the image token", prompt.image_token_id, config.image_token_id),
        ("rows of embeddings", max(rows, highest + 1), rows),
    ):
        if own != base:
            raise CheckpointError(
                f"{directory} does not fit the base {spec.base} ({what}: {own} against {base}): set `base` to its own"
            )
