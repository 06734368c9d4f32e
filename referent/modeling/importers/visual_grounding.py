"""visual-grounding-api: best.pth and latest.pth hold a box head, and LoRA where that was trained, for a LLaVA-1.5.

The prompt ends in [LOC] as plain text, the picture is CLIP's centre crop, boxes are shares of the whole image. Which
position the head reads is not the same everywhere in that project: `ReadPosition`.
"""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from referent.core.bundle import TOKENIZER_FILE, file_entry
from referent.core.prompts import ExpressionError
from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint_encoder, new_checkpoint, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.llava import llava_spec, lora_config
from referent.modeling.weights import (
    CheckpointError,
    Weights,
    check_weights,
    load_llava,
    load_llava_config,
    reading,
    refuse_pointer,
    refuse_unfit,
)

ReadPosition = Literal["last", "left600"]
READ_POSITIONS: dict[ReadPosition, str] = {
    "last": (
        "It reads the prompt's last token, which has seen the whole expression; training, and the figures, read 600 "
        "less the prompt's length before that (--read left600)."
    ),
    "left600": (
        "It reads where training did, 600 less the prompt's length before its end, where little or nothing of a short "
        "expression has been seen; --read last reads the prompt's last token."
    ),
}
PADDED_LENGTH = 600  # of left600
DEFAULT_RANK, ALPHA_PER_RANK = 16, 2  # lora_alpha is not stored
HEAD_WEIGHT = re.compile(r"(?:^|\.)head\.(mlp\.\d+\.(?:weight|bias))$")  # prefixes differ by release
LORA_WEIGHT = re.compile(r"(?:^|\.)(layers\.\d+\.\w+\.\w+\.lora_[AB])\.default\.(weight)$")
LORA_PREFIX = "base_model.model.model.language_model."
FIGURES = {"mean_iou": "iou", "rmse": "rmse", "mae": "mae"}  # of ours -> of its metrics, behind "test_" or "val_"


def import_visual_grounding(source: Path, base: Path, out: Path, read: ReadPosition = "last") -> CheckpointSpec:
    """Write the checkpoint `out`, which refers to the LLaVA directory `base`; nothing is written where that fails.

    Raises `CheckpointError`.
    """
    saved = load_saved(source)
    settings, metrics = saved["config"], saved["metrics"]
    tokenizer = base_tokenizer(base)
    spec = llava_spec(base, tokenizer, center_crop=True, plain_text_loc=True)
    llava = load_llava(base)
    with reading(source):
        model, evaluation = rebuild(llava, source, saved), _evaluation(metrics)
    prompt = spec.prompt.model_copy(update={"left_padded": PADDED_LENGTH if read == "left600" else None})
    if read == "left600" and settings.get("max_length", PADDED_LENGTH) != PADDED_LENGTH:
        raise CheckpointError(f"{source} was trained on prompts of {settings['max_length']} tokens: use --read last")
    updates: dict[str, Any] = {
        "prompt": prompt,
        "head_widths": (model.box_head.mlp[0].out_features, model.box_head.mlp[3].out_features),
        "has_scores": False,
        "evaluation": evaluation,
        "training": {
            "imported": "visual-grounding-api",
            "file": {"name": source.name, **file_entry(source).model_dump()},
            "epoch": metrics.get("epoch"),
            "read": read,
            "settings": {name: value for name, value in settings.items() if isinstance(value, str | int | float)},
        },
    }
    spec = CheckpointSpec(**spec.model_dump() | updates)
    with new_checkpoint(out) as directory:
        tokenizer.save(str(directory / TOKENIZER_FILE))
        try:
            load_checkpoint_encoder(directory, spec).suffix("a")
        except ExpressionError as error:
            raise CheckpointError(f"{base} has not the tokenizer that {source} was trained with: {error}") from error
        save_checkpoint(directory, model, spec, directory / TOKENIZER_FILE)
    return spec


def base_tokenizer(base: Path) -> Tokenizer:
    """The base's tokenizer as transformers 5 loads it, with which the project trains: tokenizer_config.json, too,
    decides whether a space is put before the text after the image. Raises `CheckpointError`."""
    config = load_llava_config(base)  # first: it says what is wrong with a folder that is not a base
    if not (base / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{base} has no {TOKENIZER_FILE}: take the edition whose name ends in -hf")
    with reading(base / TOKENIZER_FILE):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True).backend_tokenizer
    highest, rows = max(tokenizer.get_vocab().values()), config.text_config.vocab_size
    if highest >= rows:
        raise CheckpointError(
            f"{base / TOKENIZER_FILE} numbers tokens up to {highest}, and the model has {rows}: it is of another model"
        )
    return tokenizer


def load_saved(source: Path) -> dict[str, Any]:
    """The content of a .pth file, loaded as weights only. Raises `CheckpointError`."""
    refuse_pointer(source)
    with reading(source):
        saved = torch.load(source, map_location="cpu", weights_only=True)
    saved = {"config": {}, "metrics": {}, **saved} if isinstance(saved, dict) else {}
    if not all(isinstance(saved.get(part), dict) for part in ("model_state", "config", "metrics")):
        raise CheckpointError(f"{source} has no model_state: take best.pth or latest.pth of a run's checkpoints folder")
    return saved


def rebuild(llava: LlavaForConditionalGeneration, source: Path, saved: dict[str, Any]) -> GroundingModel:
    """The model with every weight of `saved` in its place, and no other. Raises `CheckpointError`."""
    settings = saved["config"]
    head_weights, lora_weights = _sorted_out(source, saved["model_state"])
    if settings.get("use_lora", bool(lora_weights)) != bool(lora_weights):
        raise CheckpointError(
            f"{source} says use_lora {settings['use_lora']} and holds {len(lora_weights)} LoRA weights: it is damaged"
        )
    remedy = f"name its own base as --base ({settings.get('model', 'it does not say which')}), or get it again"
    narrow = [head_weights[name].shape[0] for name in ("mlp.0.weight", "mlp.3.weight") if name in head_weights]
    widths = (narrow[0], narrow[1]) if len(narrow) == 2 else None
    head = BoxHead(llava.config.text_config.hidden_size, scores=False, widths=widths)
    check_weights(str(source), head.state_dict(), head_weights, remedy)
    head.load_state_dict(head_weights)
    if not lora_weights:
        return GroundingModel(llava, head).eval()
    ranks = [tensor.shape[0] for name, tensor in lora_weights.items() if ".lora_A." in name]
    rank = settings.get("lora_rank", ranks[0] if ranks else DEFAULT_RANK)
    adapted = get_peft_model(llava, lora_config([], rank, ALPHA_PER_RANK * rank))
    check_weights(str(source), get_peft_model_state_dict(adapted), lora_weights, remedy)
    set_peft_model_state_dict(adapted, lora_weights)
    return GroundingModel(adapted, head).eval()


def _sorted_out(source: Path, state: Weights) -> tuple[Weights, Weights]:
    """The head's weights and the adapter's, by the names that BoxHead and peft have for them."""
    head: Weights = {}
    lora: Weights = {}
    rest = []
    for name, tensor in state.items():
        place, own = head, ""
        if match := HEAD_WEIGHT.search(name):
            own = match[1]
        elif match := LORA_WEIGHT.search(name):
            place, own = lora, f"{LORA_PREFIX}{match[1]}.{match[2]}"
        if own and own not in place and isinstance(tensor, torch.Tensor):
            place[own] = tensor
        else:
            rest.append(name)
    refuse_unfit(str(source), "only a box head and LoRA are imported", surplus=rest)
    return head, lora


def _evaluation(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The run's own figures, test before validation; it measures them at the position of training, left600."""
    return {
        f"its own {split} set, read at left600": {
            ours: float(metrics[f"{split}_{theirs}"])
            for ours, theirs in FIGURES.items()
            if f"{split}_{theirs}" in metrics
        }
        for split in ("test", "val")
        if f"{split}_iou" in metrics
    }
