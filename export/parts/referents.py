"""The three parts of a model of kind `referents`."""

import torch
from torch import nn

from export.graphs import Part
from export.parts.head import LARGE as LARGE
from export.parts.head import add_files as add_files
from export.parts.head import example_inputs as example_inputs
from export.parts.vision import vision_part
from referent.kinds.referents import BOXES, HEATMAP, LANGUAGE_MODEL, PRESENCE, REFERENT_HEAD, SCORES, TOKEN_BOXES
from referent.modeling.grounding import GroundingModel

RANGES = {tensor.name: 1.0 for tensor in (BOXES, SCORES, PRESENCE, HEATMAP, TOKEN_BOXES)}
JUDGED = TOKEN_BOXES.name  # the end that matters where weights are rounded
RANKED = frozenset({BOXES.name, SCORES.name})


class LanguageModelStates(nn.Module):
    """input_ids, segment_ids, loc_positions, image_features -> hidden_states, image_states."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        image_features: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.model.read_states(input_ids, segment_ids, loc_positions, image_features)
        return states.hidden_states, states.image_states


class MergedInstances(nn.Module):
    """hidden_states, image_states -> boxes, scores, presence, heatmap, token_boxes."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.referent_head = model.referent_head

    def forward(self, hidden_states: torch.Tensor, image_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.referent_head.merge(self.referent_head(hidden_states, image_states)))


def split(model: GroundingModel) -> tuple[Part, ...]:
    """The parts of a model, sharing its weights."""
    return (
        vision_part(model),
        Part(LANGUAGE_MODEL, LanguageModelStates(model), LANGUAGE_MODEL.outputs),
        Part(REFERENT_HEAD, MergedInstances(model), REFERENT_HEAD.outputs),
    )
