"""The language model of a grounding model as one module that both prefills and decodes, for answers in text.

What a token sees is an input: the loop around it (`referent.generation.engine`) decides whether a row is causal,
packed, or has holes.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from referent.generation.engine import Decisions, Pass
from referent.modeling.grounding import GroundingModel

FORBIDDEN = -1e30  # the logit of a token that the grammar does not allow


class TextDecoder(nn.Module):
    """New tokens and the past -> the best allowed token at chosen places, and the new keys and values.

    input_ids (B, T) int64, image_features (B, K, D), position_ids (B, T) int64, mask (B, T, P+T) bool: what each new
    token sees, select (B, N) int64: places in T whose next token is wanted, allowed (B, N, V / 8 rounded up) uint8: a
    bit a token; then key and value of each layer, (B, H, P, d), P = 0 where there is no past. Returns token (B, N)
    int64, logprob and mass (B, N) fp32 as in `referent.generation.engine.Decisions`, then key and value of each layer,
    (B, H, T, d): of the new tokens.
    """

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        select: torch.Tensor,
        allowed: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        hidden, new = self.hidden_states(input_ids, image_features, position_ids, mask, *past)
        places = select.clamp(0, input_ids.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[-1])
        logits = self.logits(hidden.gather(1, places))  # (B, N, V)
        held = torch.where(_unpacked(allowed)[..., : logits.shape[-1]], logits, FORBIDDEN)
        best, token = held.max(-1)
        total = held.logsumexp(-1)
        return token, best - total, total - logits.logsumexp(-1), *new

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The new tokens after the last layer, (B, T, D), and their keys and values."""
        language_model = self.model.base.model.language_model
        hidden = self.model.embed(input_ids, image_features)
        rotary = language_model.rotary_emb(hidden, position_ids)
        new: list[torch.Tensor] = []
        for layer, key, value in zip(language_model.layers, past[::2], past[1::2], strict=True):
            width = getattr(layer.self_attn, "sliding_window", None)
            seen = mask if width is None else mask & _window(mask, position_ids, width)
            hidden, *fresh = _run_layer(layer, hidden, seen, rotary, key, value)
            new += fresh
        return hidden, new

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) of `hidden_states` -> (..., V) fp32."""
        base = self.model.base
        logits = base.lm_head(base.model.language_model.norm(hidden)).float()
        return _capped(logits, getattr(base.config.text_config, "final_logit_softcapping", None))


def _run_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    past_key: torch.Tensor,
    past_value: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer of Llama, Gemma or Gemma-2, (B, T, D) -> (B, T, D) and the new keys and values, (B, H, T, d) each."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query, key, value = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    keys, values = (
        repeat_kv(torch.cat(pair, dim=2), attention.num_key_value_groups)
        for pair in ((past_key, key), (past_value, value))
    )
    if isinstance(layer, Gemma2DecoderLayer):
        weights = _capped(
            (query @ keys.transpose(-1, -2)).float() * attention.scaling, attention.attn_logit_softcapping
        )
        mixed = torch.where(mask[:, None], weights, FORBIDDEN).softmax(-1).to(values.dtype) @ values
        mixed = attention.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.post_attention_layernorm(mixed)
        mixed = layer.mlp(layer.pre_feedforward_layernorm(hidden))
        return hidden + layer.post_feedforward_layernorm(mixed), key, value
    mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None])
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), key, value


def _unpacked(allowed: torch.Tensor) -> torch.Tensor:
    """(B, N, W) uint8 -> (B, N, 8 W) bool, the least significant bit first."""
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=allowed.device)
    return ((allowed[..., None] & bits) != 0).flatten(-2)


def _capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Gemma-2's soft cap: within -cap..cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _window(mask: torch.Tensor, position_ids: torch.Tensor, width: int) -> torch.Tensor:
    """(B, T, P+T) bool: the last `width` tokens up to each, and for a token of a prompt that sees itself, all of that.

    Such a row has one answer, so past columns are in the order of their positions.
    """
    past = mask.shape[2] - mask.shape[1]
    columns = torch.arange(past, device=mask.device).expand(mask.shape[0], -1)
    near = torch.cat((columns, position_ids), 1)[:, None] > position_ids[:, :, None] - width
    prompt = mask[:, 0, past:]  # what the first token sees: where there is a past, itself
    block = prompt[:, :, None] & prompt[:, None, :]
    return torch.cat((near[..., :past], near[..., past:] | block), 2)


class TorchDecoder:
    """A `referent.generation.engine.Decoder` in PyTorch, on the model's device."""

    def __init__(self, model: GroundingModel, slots: int, columns: int) -> None:
        text = model.base.config.text_config
        self._module = TextDecoder(model).eval()
        self._weight = model.base.lm_head.weight
        self.slots, self.columns, self.vocabulary = slots, columns, len(self._weight)
        shape = (slots, text.num_key_value_heads, columns, model.base.model.language_model.layers[0].self_attn.head_dim)
        self.cache = [self._weight.new_zeros(shape) for _ in range(2 * text.num_hidden_layers)]

    @torch.inference_mode()
    def run(self, inputs: Pass) -> Decisions:
        device = self._weight.device
        past = inputs.mask.shape[2] - inputs.mask.shape[1]
        rows = slice(inputs.slots.start, inputs.slots.stop)
        features = inputs.image_features
        if features is None:
            features = self._weight.new_zeros(len(inputs.slots), 1, self._weight.shape[1])
        arrays = (inputs.input_ids, inputs.position_ids, inputs.mask, inputs.select, inputs.allowed)
        ids, positions, mask, select, allowed = (torch.from_numpy(array).to(device) for array in arrays)
        features = torch.as_tensor(features).to(device, self._weight.dtype)
        outputs = self._module(
            ids, features, positions, mask, select, allowed, *(t[rows, :, :past] for t in self.cache)
        )
        for cache, new in zip(self.cache, outputs[3:], strict=True):
            for slot, start, count, fresh in zip(inputs.slots, inputs.starts, inputs.counts, new, strict=True):
                cache[slot, :, start : start + count] = fresh[:, :count]
        return Decisions(*(np.asarray(output.cpu()) for output in outputs[:3]))

    def move(self, source: int, target: int, columns: int) -> None:
        for cache in self.cache:
            cache[target, :, :columns] = cache[source, :, :columns]
