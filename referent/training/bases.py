"""Opens the base of a training run, whose tokenizer goes to OUT."""

from typing import Any

import torch
from accelerate import PartialState
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import BitsAndBytesConfig, LlavaConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from referent.core.bundle import TOKENIZER_FILE
from referent.core.grammar import PointGrammar
from referent.core.prompts import LOC_MARK, Prompt
from referent.core.text_files import fault_of
from referent.modeling.checkpoint import (
    ADAPTER_DIRECTORY,
    BASE_DIRECTORY,
    SPEC_FILE,
    CheckpointSpec,
    check_base,
    load_checkpoint_spec,
    load_head,
    load_tokenizer,
    load_visual_prompts,
    make_head,
    make_model,
)
from referent.modeling.grounding import GroundingModel
from referent.modeling.importers.detr import load_visual_prompts as prompts_on_detr
from referent.modeling.importers.paligemma import POINT_TEMPLATE, paligemma_spec, paligemma_tokenizer
from referent.modeling.importers.vpp_llava import GRAMMAR as VPP_GRAMMAR
from referent.modeling.importers.vpp_llava import TEMPLATE as VPP_TEMPLATE
from referent.modeling.llava import (
    TEMPLATES,
    TRAINED_GRAMMAR,
    add_visual_prompts,
    llava_spec,
    llava_tokenizer,
    text_generation,
)
from referent.modeling.vpp import VisualPrompts
from referent.modeling.weights import load_llava, load_llava_config, load_paligemma
from referent.training.modes import TUNED_WHOLE, end_token
from referent.training.recipe import Recipe, RecipeError

UNQUANTIZED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")  # names begin so
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def open_base(recipe: Recipe) -> tuple[GroundingModel, CheckpointSpec]:
    """The model to train and the spec of its checkpoints; its tokenizer goes to OUT.

    The base is one of our checkpoints, or any LLaVA directory. Raises `RecipeError` and `CheckpointError`.
    """
    text, prompted = recipe.answers_in_text, recipe.mode == "vpp"
    kind = "referents" if recipe.mode == "referents" else "generator" if text else "head"
    ours = (recipe.base / SPEC_FILE).is_file()
    own: CheckpointSpec | None = None  # the base's, where it is one of ours
    if ours:
        spec = own = load_checkpoint_spec(recipe.base)
        if spec.visual_prompts is not None and not prompted:
            raise RecipeError(f"{recipe.base} has visual position prompts: train it with vpp, or name another base")
        if (recipe.base / ADAPTER_DIRECTORY).is_dir():
            raise RecipeError(f"{recipe.base} has an adapter already: start from its base, {recipe.base / spec.base}")
        if recipe.center_crop or (recipe.plain_text_loc and not prompted):
            raise RecipeError("--center-crop and --plain-text-loc are for LLaVA directories; a checkpoint has its own")
        directory, tokenizer = recipe.base / spec.base, load_tokenizer(recipe.base)
    elif (recipe.base / "config.json").is_file():
        directory, tokenizer = recipe.base, llava_tokenizer(recipe.base)
    else:
        raise RecipeError(f"{recipe.base} is not a base: it has neither {SPEC_FILE} nor config.json")
    config = load_llava_config(directory)
    prompts = _visual_prompts(recipe, own, config) if prompted else None
    if own is None or (prompted and own.kind != kind):  # a prompt for another kind of answer
        spec = llava_spec(
            directory, tokenizer, template=recipe.template or (VPP_TEMPLATE if prompted and text else None),
            center_crop=recipe.center_crop, plain_text_loc=recipe.plain_text_loc,
            kind="generator" if text else "head", visual_prompts=prompts and prompts.shape,
        )  # fmt: skip
    else:
        if recipe.template:
            spec = spec.model_copy(update={"prompt": _prompt(spec, TEMPLATES.get(recipe.template, recipe.template))})
        if prompts is not None and own.visual_prompts is None:
            spec = add_visual_prompts(spec, prompts.shape)
    check_base(recipe.base, spec, config, tokenizer)
    llava = load_llava(directory, DTYPES[recipe.base_dtype], _quantization(recipe))
    keep_head = own is not None and own.kind == kind and not recipe.fresh_head
    generation = None
    if text:
        generation = text_generation(
            end_token(GroundingModel(llava, None)), VPP_GRAMMAR if prompted else TRAINED_GRAMMAR
        )
    updates: dict[str, Any] = {
        "base": BASE_DIRECTORY if recipe.mode in TUNED_WHOLE else str(directory.resolve()),
        "kind": kind,
        "generation": generation,
        "has_scores": not text and (spec.has_scores if keep_head else recipe.scores),
        "present_threshold": 0.5 if kind == "referents" else None,  # until validation says better
        "referent_threshold": 0.5 if kind == "referents" else None,
        "evaluation": {},
        "knows": recipe.knows,  # what the base knows isn't what this data teaches
    }
    try:
        trained = CheckpointSpec(**spec.model_dump() | updates)
    except ValidationError as error:
        raise RecipeError(f"{recipe.base} cannot be trained so: {fault_of(error)}") from error
    hidden_size = config.text_config.hidden_size
    head = load_head(recipe.base, spec, hidden_size) if keep_head else make_head(trained, hidden_size)
    model = make_model(llava, head)
    model.visual_prompts = prompts
    _keep_tokenizer(tokenizer, recipe)
    return model, trained


def _visual_prompts(recipe: Recipe, own: CheckpointSpec | None, config: LlavaConfig) -> VisualPrompts:
    """Those of the base, or new ones on DETR's weights. Raises `RecipeError` and `CheckpointError`."""
    if own is not None and own.visual_prompts is not None:
        if recipe.detector is not None:
            raise RecipeError(f"{recipe.base} has visual position prompts already: leave --detector out")
        return load_visual_prompts(recipe.base, own, config)
    if recipe.detector is None:
        raise RecipeError(
            f"{recipe.base} has no visual position prompts: name DETR's weights, such as detr-r101-2c7b67e5.pth, as "
            "--detector, or a base imported from VPP-LLaVA"
        )
    return prompts_on_detr(recipe.detector, config.vision_config.image_size, config.text_config.hidden_size)


def open_paligemma(recipe: Recipe) -> tuple[GroundingModel, CheckpointSpec]:
    """As `open_base`, a PaliGemma directory or a checkpoint on one, to answer with points or that nothing is there."""
    if unfit := [name for name in ("center_crop", "plain_text_loc", "compile") if getattr(recipe, name)]:
        raise RecipeError(f"--{unfit[0].replace('_', '-')} is not for points: leave it out")
    directory = recipe.base
    if (recipe.base / SPEC_FILE).is_file():
        directory = recipe.base / load_checkpoint_spec(recipe.base).base
        if (recipe.base / ADAPTER_DIRECTORY).is_dir():
            raise RecipeError(f"{recipe.base} has an adapter already: start from its base, {directory}")
    elif not (recipe.base / "config.json").is_file():
        raise RecipeError(f"{recipe.base} is not a base: it has neither {SPEC_FILE} nor config.json")
    try:
        spec = paligemma_spec(directory, PointGrammar(none=True), recipe.template or POINT_TEMPLATE)
    except ValidationError as error:
        raise RecipeError(f"--template {recipe.template!r}: {fault_of(error)}") from error
    if spec.prompt.reads_loc:
        raise RecipeError(f"--template {recipe.template!r} ends with {LOC_MARK}, and points are written: leave it out")
    tokenizer = paligemma_tokenizer(directory)
    paligemma = load_paligemma(directory, DTYPES[recipe.base_dtype], _quantization(recipe))
    check_base(recipe.base, spec, paligemma.config, tokenizer)
    _keep_tokenizer(tokenizer, recipe)
    return make_model(paligemma, None), spec


def _keep_tokenizer(tokenizer: Tokenizer, recipe: Recipe) -> None:
    if PartialState().is_main_process:
        recipe.out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(recipe.out / TOKENIZER_FILE))
    PartialState().wait_for_everyone()


def _prompt(spec: CheckpointSpec, template: str) -> Prompt:
    loc = spec.prompt.loc_token_id if template.endswith(LOC_MARK) else None
    return Prompt(**spec.prompt.model_dump() | {"template": template, "loc_token_id": loc})


def _quantization(recipe: Recipe) -> BitsAndBytesConfig | None:
    """4 bits for the language model's layers in `qlora`; the vision side and the embeddings stay as they are."""
    if recipe.four_bits and recipe.mode != "points":
        raise RecipeError("--four-bits is for points: the mode qlora has 4 bits by itself")
    if recipe.mode != "qlora" and not recipe.four_bits:
        return None
    if not is_bitsandbytes_available():
        without = "leave --four-bits out" if recipe.four_bits else "use lora"
        raise RecipeError(f"4 bits need bitsandbytes: pip install bitsandbytes, or {without}")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(UNQUANTIZED),
    )  # fmt: skip
