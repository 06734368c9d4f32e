"""The language model of a grounding model as one module that both prefills and decodes, for answers in text.

The mask is an input: the loop around this module (`referent.generation.engine`) decides whether a row is causal,
packed, or has holes.
"""

import numpy as np
import torch
from torch import nn

from referent.generation.engine import Decisions, Pass
from referent.modeling.decoder import FORBIDDEN, extend_layer, seen_by
from referent.modeling.grounding import GroundingModel


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
            seen = seen_by(layer, mask, position_ids)
            hidden, fresh = extend_layer(layer, hidden, seen, rotary, (key, value))
            new += fresh
        return hidden, new

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) of `hidden_states` -> (..., V) fp32."""
        return self.model.token_logits(self.model.base.model.language_model.norm(hidden))


def _unpacked(allowed: torch.Tensor) -> torch.Tensor:
    """(B, N, W) uint8 -> (B, N, 8 W) bool, the least significant bit first."""
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=allowed.device)
    return ((allowed[..., None] & bits) != 0).flatten(-2)


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
