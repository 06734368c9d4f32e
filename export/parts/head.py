"""The three parts of a model of kind `head`."""

from pathlib import Path

import torch
from torch import nn

from export.graphs import Part, Tensors
from export.parts.vision import example_pictures, vision_part
from referent.core.contract import VISION_ENCODER
from referent.core.packing import PADDING_SEGMENT, PREFIX_SEGMENT, Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.kinds.head import BOX_HEAD, BOXES, LANGUAGE_MODEL, SCORES
from referent.modeling.grounding import GroundingModel

RANGES = {BOXES.name: 1.0, SCORES.name: 1.0}
JUDGED = BOXES.name  # the end that matters where weights are rounded
RANKED: frozenset[str] = frozenset()
LARGE = frozenset({VISION_ENCODER.suffix, LANGUAGE_MODEL.suffix})


class LanguageModel(nn.Module):
    """input_ids, segment_ids, loc_positions, image_features -> hidden_states."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        image_features: torch.Tensor,
    ) -> torch.Tensor:
        return self.model.read_expressions(input_ids, segment_ids, loc_positions, image_features)[0]


class ScoredBoxes(nn.Module):
    """hidden_states -> boxes and, where the model has them, scores."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.box_head = model.box_head

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, logits = self.box_head(hidden_states)
        return (boxes,) if logits is None else (boxes, logits.sigmoid())


def add_files(directory: Path, spec: ModelSpec, encoder: PromptEncoder, max_batch_size: int) -> None:
    """The graphs are all there is."""


def split(model: GroundingModel) -> tuple[Part, ...]:
    """The parts of a model, sharing its weights."""
    return (
        vision_part(model),
        Part(LANGUAGE_MODEL, LanguageModel(model), LANGUAGE_MODEL.outputs),
        Part(BOX_HEAD, ScoredBoxes(model), (BOXES,) if model.box_head.score is None else (BOXES, SCORES)),
    )


def example_inputs(model: GroundingModel, spec: ModelSpec, batch: int, bucket: Bucket, seed: int = 0) -> Tensors:
    """Random but well-formed ensemble inputs: the bucket's expressions share what the prefix leaves of its tokens,
    with some padding at the end."""
    tokens, slots = bucket
    generator = torch.Generator().manual_seed(seed)
    prefix = spec.image_tokens + 1
    vocabulary = model.base.config.text_config.vocab_size
    suffix = (tokens - prefix - 1) // slots
    input_ids = torch.randint(0, vocabulary, (batch, tokens), generator=generator)
    input_ids[input_ids == spec.prompt.image_token_id] = spec.prompt.pad_token_id
    input_ids[:, 1:prefix] = spec.prompt.image_token_id
    segment_ids = torch.full((batch, tokens), PADDING_SEGMENT)
    segment_ids[:, :prefix] = PREFIX_SEGMENT
    ends = prefix + suffix * torch.arange(1, slots + 1)
    for slot, end in enumerate(ends.tolist()):
        segment_ids[:, end - suffix : end] = slot + 1
    return {
        **example_pictures(spec, batch, generator),
        "input_ids": input_ids,
        "segment_ids": segment_ids,
        "loc_positions": (ends - 1).expand(batch, -1).contiguous(),
    }
