"""PaliGemma's families and sizes against transformers' own forward pass, with random weights."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from referent.modeling.grounding import image_tokens_of
from referent.modeling.siglip_gemma import PaliGemma
from referent.modeling.text_decoder import TextDecoder

SIZE, PATCH, IMAGE_ID, VOCABULARY = 28, 7, 90, 96
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


def gemma() -> GemmaConfig:
    return GemmaConfig(**TEXT, num_key_value_heads=1)


def gemma2(**fields: Any) -> Gemma2Config:
    return Gemma2Config(**TEXT, num_key_value_heads=2, query_pre_attn_scalar=24, **fields)


FAMILIES = {
    "PaliGemma": gemma(),
    "PaliGemma-2": gemma2(),
    "PaliGemma-2, small caps": gemma2(attn_logit_softcapping=0.5, final_logit_softcapping=1.0),
    "PaliGemma-2, no caps": gemma2(attn_logit_softcapping=None, final_logit_softcapping=None),
    "PaliGemma-2, a prompt longer than the window": gemma2(sliding_window=6),
    "PaliGemma-2, a window of one": gemma2(sliding_window=1),
    "PaliGemma-2, an answer longer than the window": gemma2(sliding_window=3),
}


def build(text: GemmaConfig | Gemma2Config) -> PaliGemma:
    """Random weights, large enough that everything matters."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH, vision_use_head=False, projection_dim=48,
    )  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_ID, projection_dim=48, hidden_size=48
    )
    config._attn_implementation = "eager"  # of the reference: others drop the caps
    base = PaliGemmaForConditionalGeneration(config).eval()
    for name, parameter in base.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5)
        if "embed_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return PaliGemma(base, None)


@torch.inference_mode()
def assert_as_transformers(model: PaliGemma) -> None:
    """Several prompts with pictures, and answers token by token over keys and values."""
    decoder, text = TextDecoder(model), model.base.config.text_config
    for seed in range(3):
        generator = np.random.default_rng(seed)
        image = torch.from_numpy(generator.integers(0, 256, (1, SIZE, SIZE, 3), np.uint8))
        tokens = image_tokens_of(model.base.config)
        prompt, total = tokens + 5 + seed, tokens + 18
        ids = torch.tensor([[IMAGE_ID] * tokens + generator.integers(3, 80, total - tokens).tolist()])
        types = (torch.arange(total) >= prompt).long()[None]
        expected = model.base(input_ids=ids, pixel_values=model.normalise(image), token_type_ids=types).logits
        features = model.encode_image(image)
        mask = torch.ones(total, total).tril().bool()
        mask[:prompt, :prompt] = True
        past = [torch.zeros(1, text.num_key_value_heads, 0, text.head_dim)] * (2 * text.num_hidden_layers)
        found, start = [], 0
        for stop in (prompt, prompt + 1, prompt + 4, total):
            positions = torch.arange(start, stop)[None]
            hidden, new = decoder.hidden_states(
                ids[:, start:stop], features, positions, mask[None, start:stop, :stop], *past
            )
            past = [torch.cat(pair, 2) for pair in zip(past, new, strict=True)]
            found.append(decoder.logits(hidden))
            start = stop
        torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str) -> None:
    assert_as_transformers(build(FAMILIES[name]))


@pytest.mark.parametrize("change", [{"sliding_window": 5}, {"sliding_window": None}])
def test_another_window_is_seen(change: dict) -> None:
    model = build(gemma2(sliding_window=6))
    for layer in model.base.model.language_model.layers[::2]:
        layer.self_attn.sliding_window = change["sliding_window"]
    # the reference takes its masks from the config
    with pytest.raises(AssertionError):
        assert_as_transformers(model)


@pytest.mark.parametrize(("size", "tokens"), [(224, 256), (448, 1024), (896, 4096)])
def test_every_published_size_has_a_token_a_patch(size: int, tokens: int) -> None:
    config = PaliGemmaConfig(vision_config={"model_type": "siglip_vision_model", "image_size": size, "patch_size": 14})
    assert image_tokens_of(config) == tokens
