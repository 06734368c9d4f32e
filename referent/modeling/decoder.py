"""Llama's decoder over packed rows (`referent.core.packing`): who sees whom, a layer, and the last at [LOC] only."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from referent.core.packing import PREFIX_SEGMENT

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosine and sine of the positions, (B, T, d) each


def visible(segment_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, T) bool: which keys (last axis) a query sees; see `referent.core.packing`."""
    order = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    return (order[:, None] >= order[None, :]) & ((key == PREFIX_SEGMENT) | (key == query))


def run_layer(layer: nn.Module, hidden: torch.Tensor, mask: torch.Tensor, rotary: Rotary) -> torch.Tensor:
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


def last_layer(
    lm: LlamaModel, hidden: torch.Tensor, mask: torch.Tensor, rotary: Rotary, loc: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, MLP and norm for the [LOC] rows only, nothing reads the others; `loc` (B, N, 1) are their indices.

    Returns hidden states (B, N, D) after the final norm, and the attention from there (B, H, N, T).
    """
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


def _heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(B, T, H*d) -> (B, H, T, d)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)
