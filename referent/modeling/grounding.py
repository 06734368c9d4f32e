"""The grounding model: LLaVA read at [LOC] by a head, every expression of an image in one pass.

Its three steps are the three parts that Triton serves: `encode_image`, `read_expressions` (`read_states` where the head
reads the image tokens too), and the head.
"""

from typing import NamedTuple

import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlavaConfig, PaliGemmaConfig

from referent.modeling.decoder import last_layer, run_layer, soft_capped, visible
from referent.modeling.heads import BoxHead, ReferentHead
from referent.modeling.vpp import CLIP_MEAN, CLIP_STD, VisualPrompts
from referent.modeling.weights import VisionLanguageModel


class HeadOutputs(NamedTuple):
    """Outputs of one pass; boxes are cx,cy,w,h in 0..1 of the model's box frame."""

    boxes: torch.Tensor  # (B, N, 4)
    score_logits: torch.Tensor | None  # (B, N), predicted IoU before the sigmoid
    image_features: torch.Tensor  # (B, K, D)
    attention: torch.Tensor  # (B, H, N, T), the last layer's, from each [LOC]


class States(NamedTuple):
    """Outputs of the language model for packed rows."""

    hidden_states: torch.Tensor  # (B, N, D) at each [LOC]
    attention: torch.Tensor  # (B, H, N, T), the last layer's, from each [LOC]
    image_states: torch.Tensor  # (B, K, D), what enters the last layer at the image tokens


class GroundingModel(nn.Module):
    """A LLaVA, with or without a peft adapter around it, its head (None: it answers in text), and visual prompts if it
    has them.

    `checkpointing` trades time for memory in training: layers are computed again in the backward pass. Families whose
    images are read otherwise are subclasses (`referent.modeling.siglip_gemma`).
    """

    MEAN, STD = CLIP_MEAN, CLIP_STD  # of the vision tower's pixels

    def __init__(
        self,
        llava: VisionLanguageModel | PeftModel,
        box_head: BoxHead | None,
        visual_prompts: VisualPrompts | None = None,
        referent_head: ReferentHead | None = None,
    ) -> None:
        super().__init__()
        self.llava = llava
        self.box_head = box_head
        self.referent_head = referent_head
        self.visual_prompts = visual_prompts
        self.checkpointing = False
        for name, values in (("mean", self.MEAN), ("std", self.STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    @property
    def base(self) -> VisionLanguageModel:
        """The LLaVA itself, its layers adapted in place where there is an adapter."""
        return self.llava.get_base_model() if isinstance(self.llava, PeftModel) else self.llava

    @property
    def has_detector(self) -> bool:
        """Whether `encode_image` takes the tensors of a detector."""
        return self.visual_prompts is not None and self.visual_prompts.shape.queries > 0

    def forward(
        self,
        image: torch.Tensor,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        *detector: torch.Tensor,
    ) -> HeadOutputs:
        """Tensors as in `referent.core.contract`: (B, S, S, 3) uint8, (B, T), (B, T) and (B, N) int64."""
        image_features = self.encode_image(image, *detector)
        hidden_states, attention = self.read_expressions(input_ids, segment_ids, loc_positions, image_features)
        return HeadOutputs(*self.box_head(hidden_states), image_features, attention)

    def encode_image(self, image: torch.Tensor, *detector: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, K, D), CLIP's normalisation inside; `detector` are the tensors that
        `VisualPrompts` takes, of a model that has a detector."""
        config, model = self.base.config, self.base.model
        pixels = self.normalise(image)
        if self.visual_prompts is not None:
            pixels = self.visual_prompts.axis(pixels)
        states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = states[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            features = features[:, 1:]  # without the class token
        features = model.multi_modal_projector(features)
        if not self.has_detector:
            return features
        return torch.cat([features, self.visual_prompts(*detector).to(features.dtype)], dim=1)

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) as the vision tower was trained on it."""
        # channels first: ONNX Runtime is slow where what it broadcasts over is three numbers long
        return (image.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std

    def read_expressions(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        image_features: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed rows (`referent.core.packing`) -> hidden states at each [LOC] (B, N, D), or at other positions, and
        the last layer's attention from there (B, H, N, T).

        Ids out of range are clamped, so that one bad row cannot fail a batch.
        """
        return self._read(input_ids, segment_ids, loc_positions, image_features)[:2]

    def read_states(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        image_features: torch.Tensor,
    ) -> States:
        """As `read_expressions`, and the states of the image tokens; the last layer does not run for these."""
        hidden, attention, entering = self._read(input_ids, segment_ids, loc_positions, image_features)
        first = (input_ids == self.base.config.image_token_id).long().argmax(1)  # they stand side by side
        index = first[:, None] + torch.arange(image_features.shape[1], device=first.device)
        index = index.clamp(max=input_ids.shape[1] - 1)[..., None].expand(-1, -1, entering.shape[-1])
        return States(hidden, attention, self.base.model.language_model.norm(entering.gather(1, index)))

    def _read(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        image_features: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `read_expressions`, and what enters the last layer (B, T, D)."""
        lm = self.base.model.language_model
        loc = loc_positions.clamp(0, input_ids.shape[1] - 1)[:, :, None]  # (B, N, 1)
        hidden = self.embed(input_ids, image_features)
        mask = visible(segment_ids)  # (B, T, T)
        position_ids = mask.sum(-1) - 1
        rotary = lm.rotary_emb(hidden, position_ids)
        for layer in lm.layers[:-1]:
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(run_layer, layer, hidden, mask, rotary, use_reentrant=False)
            else:
                hidden = run_layer(layer, hidden, mask, rotary)
        return *last_layer(lm, hidden, mask, rotary, loc), hidden

    def token_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm (..., D) -> logits of the next token (..., V), fp32."""
        logits = self.base.lm_head(hidden_states).float()
        return soft_capped(logits, getattr(self.base.config.text_config, "final_logit_softcapping", None))

    def embed(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """Token embeddings, with the k-th image feature where the k-th image token stands; (B, T, D)."""
        embed = self.base.model.language_model.embed_tokens
        text = embed(input_ids.clamp(0, self.base.config.text_config.vocab_size - 1))
        is_image = input_ids == self.base.config.image_token_id
        index = (is_image.long().cumsum(1) - 1).clamp(0, image_features.shape[1] - 1)
        image = torch.gather(image_features, 1, index[..., None].expand(-1, -1, image_features.shape[-1]))
        return torch.where(is_image[..., None], image.to(text.dtype), text)


def image_tokens_of(config: LlavaConfig | PaliGemmaConfig) -> int:
    """How many features, and so image tokens, `encode_image` gives for an image."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    # the class token stays where the strategy is "full"; PaliGemma has no strategy, and SigLIP no class token
    whole = getattr(config, "vision_feature_select_strategy", "default") != "default"
    return patches + 1 if whole else patches
