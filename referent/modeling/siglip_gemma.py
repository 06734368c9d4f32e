"""PaliGemma and PaliGemma-2: SigLIP, and a Gemma that attends to the whole prompt. They answer in text."""

import torch
from torch.utils.checkpoint import checkpoint

from referent.core.packing import PREFIX_SEGMENT
from referent.modeling.decoder import run_layer, seen_by, visible
from referent.modeling.grounding import GroundingModel


class PaliGemma(GroundingModel):
    """A PaliGemma, with or without a peft adapter around it.

    Gemma multiplies the embeddings of text by sqrt(D), and image features enter as the projector gives them. Releases
    of transformers before 5 divide the features by sqrt(D), and then multiply all embeddings.
    """

    MEAN = STD = (0.5, 0.5, 0.5)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, K, D), SigLIP's normalisation inside."""
        model = self.base.model
        states = model.vision_tower(self.normalise(image)).last_hidden_state
        return model.multi_modal_projector(states)

    def read_expressions(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        image_features: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of a bidirectional prompt (segment 0) and its answer (segment 1) -> hidden states at the positions
        (B, N, D), after the final norm. The second output, for attention, is empty."""
        lm = self.base.model.language_model
        prompt = segment_ids == PREFIX_SEGMENT
        mask = visible(segment_ids) | (prompt[:, :, None] & prompt[:, None, :])
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden = self.embed(input_ids, image_features)
        rotary = lm.rotary_emb(hidden, position_ids)
        for layer in lm.layers:
            row = layer, hidden, seen_by(layer, mask, position_ids), rotary
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(run_layer, *row, use_reentrant=False)
            else:
                hidden = run_layer(*row)
        places = loc_positions.clamp(0, input_ids.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[-1])
        return lm.norm(hidden.gather(1, places)), hidden.new_zeros(0)
