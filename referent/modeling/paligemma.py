"""PaliGemma and PaliGemma-2: SigLIP and a Gemma whose whole prompt sees itself. It answers in text."""

import torch

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
