"""Modes of training: what is trained is the head, an adapter, everything, or an adapter that answers in text.

- `frozen`: the box head on a frozen LLaVA.
- `lora`: low-rank adapters on the language model's attention, [LOC]'s own embedding, and the head.
- `qlora`: the same on a base quantised to 4 bits; the checkpoint refers to the base as it is, and is merged there.
- `full`: everything that the loss reaches, with a learning rate for each group of modules.
- `text`: `lora` without a head, for answers in words; the embeddings of the answer's tokens are trained too.
- `referents`: as `lora`, with a head that reads every referent of an expression.
- `points`: adapters on all projections of PaliGemma's language model, for points in words.
- `vpp`: everything, visual position prompts among it, for answers in words or a head; a learning rate for each group.
"""

from typing import Any

from peft import get_peft_model
from torch import nn

from referent.core.prompts import PromptEncoder
from referent.modeling.checkpoint import CheckpointSpec
from referent.modeling.grounding import GroundingModel
from referent.modeling.llava import ALL_TARGETS, lora_config
from referent.training.recipe import Recipe, RecipeError

EVERY_DIGIT = (0.123, 0.456, 0.789, 1.0)
TUNED_WHOLE = ("full", "vpp")


def select_trained(model: GroundingModel, spec: CheckpointSpec, encoder: PromptEncoder, recipe: Recipe) -> None:
    """Freeze what the mode does not train, and wrap the LLaVA in an adapter if the mode trains one.

    Raises `RecipeError`.
    """
    model.llava.requires_grad_(False)
    if recipe.mode in TUNED_WHOLE:
        _unfreeze_used(model)
        if recipe.answers_in_text:
            model.base.lm_head.requires_grad_(True)
    elif recipe.mode == "points":
        config = lora_config([], *recipe.adapter, ALL_TARGETS)
        model.llava = get_peft_model(model.llava, config)
    elif recipe.mode != "frozen":
        tokens = set() if spec.prompt.loc_token_id is None else {spec.prompt.loc_token_id}
        if recipe.mode == "text":  # a base may never have seen them, such as mini's; it costs some twenty rows
            try:
                tokens |= {end_token(model), *encoder.answer(spec.generation.grammar.write(EVERY_DIGIT))}
            except ValueError as error:
                raise RecipeError(f"this base cannot answer in text: {error}") from error
        config = lora_config(tokens, *recipe.adapter)
        model.llava = get_peft_model(model.llava, config)


def end_token(model: GroundingModel) -> int:
    """The token that ends an answer in text. Raises `RecipeError`."""
    end = model.base.config.text_config.eos_token_id
    if not isinstance(end, int):
        raise RecipeError(f"the base's text_config.eos_token_id is {end}; answers in text need one end token")
    return end


def parameter_groups(model: GroundingModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Trained parameters with their learning rates; one rate for all, except in `full` and `vpp`."""
    rates = {
        "visual_prompts.detector": recipe.detector_learning_rate,
        "visual_prompts": recipe.learning_rate,
        "vision_tower": recipe.vision_learning_rate,
        "multi_modal_projector": recipe.projector_learning_rate,
        "language_model": recipe.language_learning_rate,
        "lm_head": recipe.language_learning_rate,
        "box_head": recipe.learning_rate,
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = next((m for m in rates if m in name), "box_head") if recipe.mode in TUNED_WHOLE else "all"
            group = groups.setdefault(module, {"params": [], "lr": rates.get(module, recipe.learning_rate)})
            group["params"].append(parameter)
    return list(groups.values())


def _unfreeze_used(model: GroundingModel) -> None:
    """Unfreeze everything that a box depends on: distributed training fails at a parameter without gradient."""
    base = model.base
    base.model.requires_grad_(True)
    tower = base.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    tower.post_layernorm.requires_grad_(False)
    layer = base.config.vision_feature_layer
    used = layer if layer >= 0 else len(tower.encoder.layers) + 1 + layer
    unused: nn.ModuleList = tower.encoder.layers[used:]
    unused.requires_grad_(False)
