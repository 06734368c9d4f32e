"""The grounding model: LLaVA read at [LOC] by a box head, every expression of an image in one pass.

Its three steps are the three parts that Triton serves: `encode_image`, `read_expressions`, `box_head`.
"""

from typing import NamedTuple

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from referent.core.packing import PREFIX_SEGMENT

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # channel statistics of openai/clip-vit-large-patch14-336
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Grounding(NamedTuple):
    """What one pass gives; boxes are cx,cy,w,h in 0..1 of the model's box frame."""

    boxes: torch.Tensor  # (B, N, 4)
    score_logits: torch.Tensor | None  # (B, N), predicted IoU before the sigmoid
    image_features: torch.Tensor  # (B, K, D)
    attention: torch.Tensor  # (B, H, N, T), the last layer's, from each [LOC]


class BoxHead(nn.Module):
    """Hidden state of [LOC] -> box and, where trained, score. Always computed in fp32.

    The shape is visual-grounding-api's D, D/8, D/16, 4 (4096-512-256-4); small models keep at least 256 wide layers.
    """

    def __init__(self, hidden_size: int, dropout: float = 0.1, scores: bool = True) -> None:
        super().__init__()
        wide, narrow = max(256, hidden_size // 8), max(256, hidden_size // 16)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, wide), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(wide, narrow), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(narrow, 4),
        )  # fmt: skip
        self.score = nn.Linear(hidden_size, 1) if scores else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(..., D) of any dtype -> boxes (..., 4) in 0..1, score logits (...) or None."""
        hidden_states = hidden_states.float()
        scores = None if self.score is None else self.score(hidden_states).squeeze(-1)
        return self.mlp(hidden_states).sigmoid(), scores


class GroundingModel(nn.Module):
    """A LLaVA, with or without a peft adapter around it, and its box head (None: it answers in text).

    `checkpointing` trades time for memory in training: layers are computed again in the backward pass.
    """

    def __init__(self, llava: LlavaForConditionalGeneration | PeftModel, box_head: BoxHead | None) -> None:
        super().__init__()
        self.llava = llava
        self.box_head = box_head
        self.checkpointing = False
        for name, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    @property
    def base(self) -> LlavaForConditionalGeneration:
        """The LLaVA itself, its layers adapted in place where there is an adapter."""
        return self.llava.get_base_model() if isinstance(self.llava, PeftModel) else self.llava

    def forward(
        self,
        image: torch.Tensor,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
    ) -> Grounding:
        """Tensors as in `referent.core.contract`: (B, S, S, 3) uint8, (B, T), (B, T) and (B, N) int64."""
        image_features = self.encode_image(image)
        hidden_states, attention = self.read_expressions(input_ids, segment_ids, loc_positions, image_features)
        return Grounding(*self.box_head(hidden_states), image_features, attention)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, K, D), CLIP's normalisation inside."""
        config, model = self.base.config, self.base.model
        # channels first: ONNX Runtime is slow where what it broadcasts over is three numbers long
        pixels = (image.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = states[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            features = features[:, 1:]  # without the class token
        return model.multi_modal_projector(features)

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
        lm = self.base.model.language_model
        loc = loc_positions.clamp(0, input_ids.shape[1] - 1)[:, :, None]  # (B, N, 1)
        hidden = self.embed(input_ids, image_features)
        mask = visible(segment_ids)  # (B, T, T)
        position_ids = mask.sum(-1) - 1
        rotary = lm.rotary_emb(hidden, position_ids)
        for layer in lm.layers[:-1]:
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(_run_layer, layer, hidden, mask, rotary, use_reentrant=False)
            else:
                hidden = _run_layer(layer, hidden, mask, rotary)
        return self._last_layer(hidden, mask, rotary, loc)

    def _last_layer(
        self, hidden: torch.Tensor, mask: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], loc: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, MLP and norm for the [LOC] rows only; nothing reads the others."""
        lm = self.base.model.language_model
        layer, attention = lm.layers[-1], lm.layers[-1].self_attn

        def at_loc(x: torch.Tensor) -> torch.Tensor:
            return torch.gather(x, 1, loc.expand(-1, -1, x.shape[-1]))

        normed = layer.input_layernorm(hidden)
        key, value = (_heads(project(normed), attention.head_dim) for project in (attention.k_proj, attention.v_proj))
        query = _heads(attention.q_proj(at_loc(normed)), attention.head_dim)
        _, key = apply_rotary_pos_emb(key, key, *rotary)
        _, query = apply_rotary_pos_emb(query, query, *(at_loc(x) for x in rotary))
        key, value = (repeat_kv(x, attention.num_key_value_groups) for x in (key, value))
        logits = (query @ key.transpose(-1, -2)).float() * attention.scaling  # (B, H, N, T)
        weights = logits.masked_fill(~at_loc(mask)[:, None], torch.finfo(torch.float32).min).softmax(-1)
        mixed = weights.to(value.dtype) @ value
        hidden = at_loc(hidden) + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return lm.norm(hidden), weights

    def embed(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """Token embeddings, with the k-th image feature where the k-th image token stands; (B, T, D)."""
        embed = self.base.model.language_model.embed_tokens
        text = embed(input_ids.clamp(0, self.base.config.text_config.vocab_size - 1))
        is_image = input_ids == self.base.config.image_token_id
        index = (is_image.long().cumsum(1) - 1).clamp(0, image_features.shape[1] - 1)
        image = torch.gather(image_features, 1, index[..., None].expand(-1, -1, image_features.shape[-1]))
        return torch.where(is_image[..., None], image.to(text.dtype), text)


def _run_layer(
    layer: nn.Module, hidden: torch.Tensor, mask: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """One decoder layer, (B, T, D) -> (B, T, D), with a mask (B, T, T)."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query, key, value = (
        _heads(project(normed), attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    key, value = (repeat_kv(x, attention.num_key_value_groups) for x in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def visible(segment_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, T) bool: which keys (last axis) a query sees; see `referent.core.packing`."""
    order = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    return (order[:, None] >= order[None, :]) & ((key == PREFIX_SEGMENT) | (key == query))


def _heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(B, T, H*d) -> (B, H, T, d)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)
