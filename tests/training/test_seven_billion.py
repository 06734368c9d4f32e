"""LLaVA-1.5-7B's true widths, with two layers of 32 and of 24: a training step, and what it trains."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.llava import TEMPLATES
from referent.training.losses import LossWeights, Objective
from referent.training.modes import parameter_groups, select_trained
from referent.training.recipe import Recipe

HEAD, LORA_PER_LAYER = 2_230_020, 16 * (4096 + 4096) * 3
ROW = Bucket(608, 2)


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=32064, num_hidden_layers=2)
    torch.manual_seed(0)
    # fp32: in bf16 a step takes over ten minutes on a processor without instructions for it
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """One image, two expressions of ten tokens each after 577 of the prefix."""
    torch.manual_seed(0)
    ids = torch.randint(3, 32000, (1, ROW.tokens))
    ids[:, 1:577] = 32000
    segments = torch.tensor([[0] * 577 + [1] * 10 + [2] * 10 + [-1] * 11])
    return {
        "image": torch.randint(0, 256, (1, 336, 336, 3)).to(torch.uint8),
        "input_ids": ids,
        "segment_ids": segments,
        "loc_positions": torch.tensor([[586, 596]]),
        "used": torch.tensor([[True, True]]),
        "present": torch.tensor([[True, True]]),
        "single": torch.tensor([[True, True]]),
        "boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.6, 0.1, 0.4]]]),
    }


@pytest.mark.parametrize(("mode", "trained"), [("frozen", HEAD), ("lora", HEAD + 2 * LORA_PER_LAYER)])
def test_a_step_trains_the_published_number_of_parameters(
    llava: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor], mode: str, trained: int
) -> None:
    assert LORA_PER_LAYER * 32 == 12_582_912
    model = GroundingModel(llava, BoxHead(4096, scores=False))
    recipe = Recipe(mode, *[Path()] * 4)
    prompt = Prompt(
        template=TEMPLATES["vg"], bos_token_id=1, pad_token_id=32001, image_token_id=32000, loc_token_id=None
    )
    select_trained(model, _Spec(prompt), None, recipe)
    groups = parameter_groups(model, recipe)
    assert sum(p.numel() for group in groups for p in group["params"]) == trained

    before = model.box_head.mlp[0].weight.detach().clone()
    optimizer = torch.optim.AdamW(groups)
    loss = Objective(model, LossWeights()).train()(**batch)["loss"]
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for group in groups for p in group["params"])
    assert not torch.equal(model.box_head.mlp[0].weight, before)


class _Spec:
    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt


def test_the_published_head_and_prompt(make_recipe: Callable[..., Recipe]) -> None:
    assert sum(p.numel() for p in BoxHead(4096, scores=False).parameters()) == HEAD
    assert TEMPLATES["vg"].format(expression="cup") == "<image>\nFind the object referred to: cup [LOC]"
