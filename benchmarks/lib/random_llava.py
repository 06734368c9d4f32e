"""LLaVA-1.5-7B's shape with random weights: a checkpoint that is made file by file, in the memory of one layer."""

import json
import math
import re
from itertools import groupby
from pathlib import Path
from shutil import copyfile

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from referent.core.bundle import TOKENIZER_FILE
from referent.core.grammar import BoxGrammar, Generation
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.core.transform import ImageTransform
from referent.modeling.checkpoint import BASE_DIRECTORY, HEAD_FILE, SPEC_FILE, CheckpointSpec
from referent.modeling.grounding import image_tokens_of
from referent.modeling.heads import BoxHead

VOCABULARY, IMAGE_TOKEN, PAD_TOKEN, LOC_TOKEN = 32064, 32000, 32001, 32002
LAYERS = 32
PROMPT = "<image>\nFind the object referred to: {expression}"
POOL = 33_554_393  # random numbers, and a prime: 7 G of them take ten minutes of a core to draw
SPREAD = 3  # of the last layer of the box head: so that answers to different questions differ


def llava_config(layers: int = LAYERS, tiny: bool = False) -> LlavaConfig:
    """Of LLaVA-1.5-7B, with fewer layers or in tiny widths if told so."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, max_position_embeddings=4096)
    if tiny:
        for part, heads in ((vision, 2), (text, 2)):
            part.update({"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": heads})
        vision.update({"num_hidden_layers": 3, "image_size": 56})
        text.update({"num_key_value_heads": 2, "head_dim": 32})
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, dtype="float16")


def save_random_llava(directory: Path, config: LlavaConfig, tokenizer_file: Path, buckets: tuple[Bucket, ...]) -> None:
    """A checkpoint of kind `head`; fp16, the same weights everywhere."""
    base = directory / BASE_DIRECTORY
    base.mkdir(parents=True)
    config.architectures = [LlavaForConditionalGeneration.__name__]
    config.save_pretrained(base)
    _save_weights(base, config)
    spec = llava_spec(config, buckets, text=False)
    torch.manual_seed(1)
    head = BoxHead(config.text_config.hidden_size)
    head.get_parameter("mlp.6.weight").data *= SPREAD
    save_file(head.state_dict(), directory / HEAD_FILE)
    copyfile(tokenizer_file, directory / TOKENIZER_FILE)
    (directory / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n")


def llava_spec(config: LlavaConfig, buckets: tuple[Bucket, ...], text: bool) -> CheckpointSpec:
    """Of kind `head`, or `generator`."""
    prompt = Prompt(
        template=PROMPT + ("" if text else "[LOC]"), bos_token_id=1, pad_token_id=PAD_TOKEN,
        image_token_id=IMAGE_TOKEN, loc_token_id=None if text else LOC_TOKEN,
    )  # fmt: skip
    generation = Generation(grammar=BoxGrammar(order="cxcywh", decimals=3, lead=" "), eos_token_id=2) if text else None
    return CheckpointSpec(
        kind="generator" if text else "head", image=ImageTransform(size=config.vision_config.image_size),
        image_tokens=image_tokens_of(config), box_frame="transformed", prompt=prompt, buckets=buckets,
        present_threshold=None, base=BASE_DIRECTORY, generation=generation, adapter=False, has_scores=not text,
    )  # fmt: skip


def _save_weights(base: Path, config: LlavaConfig) -> None:
    """In files of one layer each, as transformers finds them."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlavaForConditionalGeneration(config).state_dict().items()}
    files: dict[str, str] = {}
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).half()
    places = torch.Generator().manual_seed(1)
    for number, (_, names) in enumerate(groupby(shapes, _layer_of)):
        file = f"model-{number:05d}.safetensors"
        weights = {name: _random(name, shapes[name], pool, places) for name in names}
        save_file(weights, base / file, {"format": "pt"})
        files |= dict.fromkeys(weights, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def _layer_of(name: str) -> str:
    found = re.match(r".*language_model\.layers\.\d+\.|.*vision_tower|.*projector", name)
    return found[0] if found else name


def _random(name: str, shape: torch.Size, pool: torch.Tensor, places: torch.Generator) -> torch.Tensor:
    """Normally distributed matrices, cut from the pool at any place."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float16)
    if "norm" in name:
        return torch.ones(shape, dtype=torch.float16)
    start, count = int(torch.randint(POOL, (1,), generator=places)), math.prod(shape)
    drawn = torch.cat([pool[start:], *[pool] * (count // POOL), pool[:start]])[:count].view(shape)
    return drawn * min(shape[-1] ** -0.5, 0.1)
