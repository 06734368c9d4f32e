"""Decoders of Llama, Gemma and Gemma-2: the mask of packed rows (`referent.core.packing`), a layer with or without a
past, and Llama's last layer at [LOC] only."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaModel
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.llama.modeling_llama import repeat_kv, rotate_half

from referent.core.packing import PREFIX_SEGMENT

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosine and sine of the positions, (B, T, d) each
Cache = tuple[torch.Tensor, torch.Tensor]  # keys and values, (B, H, T, d) each
FORBIDDEN = -1e30  # the logit of what must not be chosen, or seen


def visible(segment_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, T) bool: which keys (last axis) a query sees; see `referent.core.packing`."""
    order = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    return (order[:, None] >= order[None, :]) & ((key == PREFIX_SEGMENT) | (key == query))


def run_layer(layer: nn.Module, hidden: torch.Tensor, mask: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """One decoder layer, (B, T, D) -> (B, T, D), with a mask (B, T, T)."""
    return extend_layer(layer, hidden, mask, rotary, None)[0]


def extend_layer(
    layer: nn.Module, hidden: torch.Tensor, mask: torch.Tensor, rotary: Rotary, past: Cache | None
) -> tuple[torch.Tensor, Cache]:
    """As `run_layer`, for tokens that also see a past of P tokens, according to the mask (B, T, P+T). Also returns the
    keys and values of the new tokens."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query, key, value = (
        _heads(project(normed), attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = rotated(query, rotary), rotated(key, rotary)
    new = key, value
    if past is not None:
        key, value = (torch.cat(pair, dim=2) for pair in zip(past, new, strict=True))
    key, value = (repeat_kv(x, attention.num_key_value_groups) for x in (key, value))
    if isinstance(layer, Gemma2DecoderLayer):
        logits = soft_capped(
            (query @ key.transpose(-1, -2)).float() * attention.scaling, attention.attn_logit_softcapping
        )
        mixed = torch.where(mask[:, None], logits, FORBIDDEN).softmax(-1).to(value.dtype) @ value
        mixed = attention.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.post_attention_layernorm(mixed)
        mixed = layer.mlp(layer.pre_feedforward_layernorm(hidden))
        return hidden + layer.post_feedforward_layernorm(mixed), new
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), new


def rotated(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Queries or keys (B, H, T, d) turned by their positions."""
    cosine, sine = rotary
    if torch.compiler.is_exporting():  # one node; what it consists of is recognised in fp32 alone
        half = cosine.shape[-1] // 2  # the other half repeats it
        return torch.onnx.ops.rotary_embedding(x, cosine[..., :half], sine[..., :half])
    return x * cosine[:, None] + rotate_half(x) * sine[:, None]


def soft_capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Gemma-2's soft cap: within -cap..cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def seen_by(layer: nn.Module, mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """The mask (B, T, P+T) of a layer. Layers of Gemma-2 that have a window see only the last tokens; in a
    bidirectional prompt, a token sees the whole prompt.

    Rows of such a model have one answer, so past columns are in the order of their positions.
    """
    width = getattr(layer.self_attn, "sliding_window", None)
    if width is None:
        return mask
    past = mask.shape[2] - mask.shape[1]
    columns = torch.arange(past, device=mask.device).expand(mask.shape[0], -1)
    near = torch.cat((columns, position_ids), 1)[:, None] > position_ids[:, :, None] - width
    prompt = mask[:, 0, past:]  # what the first token sees: where there is a past, itself
    block = prompt[:, :, None] & prompt[:, None, :]
    return mask & torch.cat((near[..., :past], near[..., past:] | block), 2)


def last_layer(
    lm: LlamaModel, hidden: torch.Tensor, mask: torch.Tensor, rotary: Rotary, loc: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, MLP and norm only at [LOC], since other outputs are not read; `loc` (B, N, 1) are the indices of [LOC].

    Returns hidden states (B, N, D) after the final norm, and the attention from there (B, H, N, T).
    """
    layer, attention = lm.layers[-1], lm.layers[-1].self_attn

    def at_loc(x: torch.Tensor) -> torch.Tensor:
        return torch.gather(x, 1, loc.expand(-1, -1, x.shape[-1]))

    normed = layer.input_layernorm(hidden)
    key, value = (_heads(project(normed), attention.head_dim) for project in (attention.k_proj, attention.v_proj))
    query = _heads(attention.q_proj(at_loc(normed)), attention.head_dim)
    key, query = rotated(key, rotary), rotated(query, tuple(at_loc(x) for x in rotary))
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
