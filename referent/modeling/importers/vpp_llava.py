"""VPP-LLaVA: a directory of a LLaVA-1.5 with visual position prompts, in the layout of its own code (`llava_llama`).

It answers with a box of the padded square, x1, y1, x2, y2 in two decimals. Constants of its code are here and in
`referent.modeling.vpp`; everything else is read from config.json and from the shapes of the weights.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from referent.core.bundle import TOKENIZER_FILE
from referent.core.grammar import BoxGrammar, Generation
from referent.modeling.checkpoint import BASE_DIRECTORY, CheckpointSpec, new_checkpoint, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.llava import llava_spec, llava_tokenizer
from referent.modeling.vpp import VisualPrompts, VisualPromptsShape
from referent.modeling.weights import CheckpointError, Weights, check_weights, reading, refuse_pointers, refuse_unfit

CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE = "config.json", "model.safetensors.index.json", "model.safetensors"
TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\nPlease provide the bounding box coordinate of the "
    "region this sentence describes: {expression}. Each image is accompanied by axes. If the question pertains to the "
    "bounding box coordinates, refer to the axes for the response. ASSISTANT:"
)
GRAMMAR = BoxGrammar(order="xyxy", decimals=2, lead=" ")
CLIP = CLIPVisionConfig(  # openai/clip-vit-large-patch14-336
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
    patch_size=14, projection_dim=768,
)  # fmt: skip
CLIP_NAME = "clip-vit-large-patch14-336"
EXPECTED = {  # what its code can do otherwise, and no published model does
    "model_type": "llava_llama",
    "image_aspect_ratio": "pad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "tie_word_embeddings": False,
}
NEEDED_SETTINGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps",
    "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings",
)  # fmt: skip
OTHER_SETTINGS = ("num_key_value_heads", "hidden_act", "attention_bias", "rope_theta", "rope_scaling")
TOWER = "model.vision_tower.vision_tower.vision_model."
DETECTOR = "model.detr_vision_tower.vision_tower."
PLACES = {  # the beginnings of its names -> of ours
    TOWER: "llava.model.vision_tower.",
    "model.mm_projector.0.": "llava.model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "llava.model.multi_modal_projector.linear_2.",
    "model.embed_tokens.": "llava.model.language_model.embed_tokens.",
    "model.layers.": "llava.model.language_model.layers.",
    "model.norm.": "llava.model.language_model.norm.",
    "lm_head.": "llava.lm_head.",
    "model.visual_prompt": "visual_prompts.axis.prompt",
    "model.grd_projector.": "visual_prompts.projector.",
    DETECTOR: "visual_prompts.detector.",
}
BLOCK_PARTS = {"conv": "convolution", "bn": "normalization"}
DETECTOR_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (  # applied one after another
    (r"^backbone\.0\.body\.conv1\.", "backbone.0.embedder.convolution."),
    (r"^backbone\.0\.body\.bn1\.", "backbone.0.embedder.normalization."),
    (r"^backbone\.0\.body\.layer(\d)\.", r"backbone.\1."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"^(backbone\.\d\.\d+)\.(conv|bn)(\d)\.", lambda m: f"{m[1]}.layer.{int(m[3]) - 1}.{BLOCK_PARTS[m[2]]}."),
    (r"^input_proj\.", "input_projection."),
    (r"^query_embed\.", "query_position_embeddings."),
    (r"^transformer\.decoder\.norm\.", "decoder.layernorm."),
    (r"^transformer\.", ""),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"^(encoder\..*)\.norm2\.|^(decoder\..*)\.norm3\.", lambda m: f"{m[1] or m[2]}.final_layer_norm."),
    (r"\.norm2\.", ".encoder_attn_layer_norm."),
)
JOINT = re.compile(r"\.in_proj_(weight|bias)$")  # query, key and value, one below the other


def import_vpp_llava(source: Path, out: Path, clip: Path | None = None) -> CheckpointSpec:
    """Write the checkpoint `out`, which holds all weights; nothing is written where that fails.

    `clip` is the directory of the CLIP that config.json names; it is needed if that is not the published one, or was
    not trained. The weights are mapped from their files. Raises `CheckpointError`.
    """
    settings = load_settings(source)
    tokenizer = llava_tokenizer(source)
    weights = load_weights(source)
    if not settings.get("unfreeze_mm_vision_tower"):
        weights = _with_stock_clip(source, settings, weights, clip)
    with reading(source / CONFIG_FILE):
        config = llava_config(source, settings, clip)
    tokens, rows = tokenizer.get_vocab_size(with_added_tokens=True), config.text_config.vocab_size
    if tokens > rows:
        raise CheckpointError(f"{source} has a tokenizer of {tokens} tokens and embeddings of {rows}: get it again")
    model = place(str(source), config, convert(weights))
    with new_checkpoint(out) as directory:
        config.save_pretrained(directory / BASE_DIRECTORY)
        spec = llava_spec(
            directory / BASE_DIRECTORY,
            tokenizer,
            template=TEMPLATE,
            kind="generator",
            visual_prompts=model.visual_prompts.shape,
        )
        own = {
            "base": BASE_DIRECTORY,
            "generation": Generation(grammar=GRAMMAR, eos_token_id=config.text_config.eos_token_id),
            "present_threshold": 0.0,
            "training": {"imported": "VPP-LLaVA", "name": source.resolve().name},
        }
        spec = CheckpointSpec(**spec.model_dump() | own)
        tokenizer.save(str(directory / TOKENIZER_FILE))
        save_checkpoint(directory, model, spec, directory / TOKENIZER_FILE)
    return spec


def load_settings(source: Path) -> dict[str, Any]:
    """config.json, of a model that is built as the published ones are. Raises `CheckpointError`."""
    file = source / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{source} is not a directory of VPP-LLaVA: it has no {CONFIG_FILE}")
    refuse_pointers(source)
    with reading(file):
        settings = json.loads(file.read_text("utf-8"))
        for name, expected in EXPECTED.items():
            if (found := settings.get(name, False if expected is False else None)) != expected:
                raise CheckpointError(
                    f"{file} has {name} {found!r} instead of {expected!r}: only models built as VPP-LLaVA-7b and -13b "
                    "are imported"
                )
        if missing := [name for name in NEEDED_SETTINGS if settings.get(name) is None]:
            raise CheckpointError(f"{file} has no {', '.join(missing)}: it is incomplete, get it again")
    return dict(settings)


def load_weights(source: Path) -> Weights:
    """All tensors by their names, mapped from the files. Raises `CheckpointError`."""
    index, names = source / INDEX_FILE, [WEIGHTS_FILE]
    if index.is_file():
        with reading(index):
            names = sorted({str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    weights: Weights = {}
    for file in (source / name for name in names):
        if not file.is_file():
            raise CheckpointError(f"{source} has no {file.name}: copy the whole directory again")
        with reading(file):
            weights |= load_file(file)
    return weights


def convert(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The weights under GroundingModel's names; weights that it doesn't have keep their own names."""
    converted: Weights = {}
    for name, tensor in weights.items():
        begin = next((begin for begin in PLACES if name.startswith(begin)), None)
        rest = "" if begin is None else name.removeprefix(begin)
        place = name if begin is None else PLACES[begin]
        if begin != DETECTOR:
            converted[place + rest] = tensor
            continue
        for pattern, replacement in DETECTOR_NAMES:
            rest = re.sub(pattern, replacement, rest)
        if joint := JOINT.search(rest):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{place}{rest[: joint.start()]}.{part}_proj.{joint[1]}"] = third
        else:
            converted[place + rest] = tensor
    return converted


def place(what: str, config: LlavaConfig, weights: Weights) -> GroundingModel:
    """The model with every weight in its place, and no other; those of the visual prompts become fp32.

    Raises `CheckpointError`.
    """
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
        prompts = VisualPrompts(
            config.vision_config.image_size, config.text_config.hidden_size, visual_prompts_shape(weights)
        )
        model = GroundingModel(llava, None, prompts).eval()
    check_weights(what, model.state_dict(), weights, "it is incomplete or of another model, get it again")
    own = {name: tensor.float() for name, tensor in weights.items() if name.startswith("visual_prompts.")}
    model.load_state_dict(weights | own, assign=True)
    return model


def llava_config(source: Path, settings: dict[str, Any], clip: Path | None) -> LlavaConfig:
    """Its config.json as a configuration of transformers. Raises `CheckpointError` for an unknown CLIP."""
    text = {name: settings[name] for name in (*NEEDED_SETTINGS, *OTHER_SETTINGS) if settings.get(name) is not None}
    return LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=_clip_config(source, settings, clip),
        image_token_id=text["vocab_size"],  # its own code has none; no embedding is looked up for it
        vision_feature_layer=EXPECTED["mm_vision_select_layer"],
        vision_feature_select_strategy="default",
        pad_token_id=settings.get("pad_token_id"),
        tie_word_embeddings=False,
    )


def _clip_config(source: Path, settings: dict[str, Any], clip: Path | None) -> CLIPVisionConfig:
    if clip is not None:
        with reading(clip):
            return CLIPVisionConfig.from_pretrained(str(clip), local_files_only=True)
    if str(settings.get("mm_vision_tower")).rstrip("/").rpartition("/")[2] != CLIP_NAME:
        raise CheckpointError(
            f"{source} needs a CLIP whose sizes are not known here (mm_vision_tower "
            f"{settings.get('mm_vision_tower')!r}): name its directory as --clip"
        )
    return CLIP


def _with_stock_clip(source: Path, settings: dict[str, Any], weights: Weights, clip: Path | None) -> Weights:
    """Its code trusts the weights of CLIP in the file only if they were trained, as config.json says."""
    if clip is None:
        raise CheckpointError(
            f"{source} was trained without its CLIP (unfreeze_mm_vision_tower): name the directory of "
            f"{settings.get('mm_vision_tower')} as --clip"
        )
    with reading(clip):
        loaded: Any = CLIPVisionModel.from_pretrained(
            str(clip), local_files_only=True, dtype="auto", output_loading_info=True
        )
    model, info = loaded
    refuse_unfit(str(clip), "it is incomplete, get it again", info["missing_keys"])
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(TOWER)}
    return kept | {TOWER + name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}


def visual_prompts_shape(weights: Weights) -> VisualPromptsShape:
    """The shape according to the weights, or as published if they don't show it."""

    def rows(name: str, otherwise: int) -> int:
        tensor = weights.get(f"visual_prompts.detector.{name}.weight")
        return otherwise if tensor is None else len(tensor)

    published = VisualPromptsShape()
    sizes = tuple(
        rows(f"backbone.{stage}.0.layer.2.convolution", size) for stage, size in enumerate(published.stage_sizes, 1)
    )
    within = rows("backbone.1.0.layer.0.convolution", sizes[0] // published.reduction)
    return VisualPromptsShape(
        stage_sizes=sizes,
        reduction=max(1, sizes[0] // max(1, within)),
        feed_forward_size=rows("encoder.layers.0.mlp.fc1", published.feed_forward_size),
        queries=rows("query_position_embeddings", published.queries),
    )
