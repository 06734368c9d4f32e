"""PaliGemma as it is published, which detects, and point-vlm: LoRA for PaliGemma-2, which points."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from PIL import Image
from tokenizers import Tokenizer
from transformers import PaliGemmaConfig

from referent.core.bundle import TOKENIZER_FILE, file_entry
from referent.core.grammar import LOC_STEPS, DetectionGrammar, Generation, PointGrammar
from referent.core.prompts import EXPRESSION_MARK, IMAGE_MARK, Prompt
from referent.core.transform import ImageTransform
from referent.modeling.checkpoint import CheckpointSpec, load_tokenizer, make_model, new_checkpoint, save_checkpoint
from referent.modeling.grounding import image_tokens_of
from referent.modeling.llava import buckets_of
from referent.modeling.siglip_gemma import PaliGemma
from referent.modeling.weights import (
    ADAPTER_FILES,
    CheckpointError,
    VisionLanguageModel,
    load_adapter,
    load_paligemma,
    load_paligemma_config,
    reading,
)

POINT_TEMPLATE = f"{IMAGE_MARK}\nPoint to {EXPRESSION_MARK}\n"  # of point-vlm's evaluation; the processor ends it so
DETECT_TEMPLATE = f"{IMAGE_MARK}detect {EXPRESSION_MARK}\n"
SUFFIX_TOKENS = 28  # of one expression with its prompt, amply
INSTANCES = 32  # of an expression, where a request does not say


def import_paligemma(base: Path, out: Path, adapter: Path | None = None) -> CheckpointSpec:
    """Write the checkpoint `out` of a PaliGemma that answers `detect ...`, with the PEFT adapter if one is given. It
    refers to the directory `base`. Nothing is written if that fails. Raises `CheckpointError`."""
    tokenizer = paligemma_tokenizer(base)
    first = tokenizer.token_to_id(_loc(0))
    if first is None or any(tokenizer.token_to_id(_loc(step)) != first + step for step in range(LOC_STEPS)):
        raise CheckpointError(f"{base} has not the tokens {_loc(0)} to {_loc(LOC_STEPS - 1)}: it is no PaliGemma")
    grammar = DetectionGrammar(first_loc_id=first, none=True)
    return _import("paligemma", base, out, adapter, tokenizer, grammar, DETECT_TEMPLATE)


def import_point_vlm(adapter: Path, base: Path, out: Path) -> CheckpointSpec:
    """Write the checkpoint `out` of point-vlm's adapter and the directory `base` of the PaliGemma-2 that it was trained
    on; nothing is written where that fails. It was never taught to say that nothing is there.

    Raises `CheckpointError`.
    """
    return _import("point-vlm", base, out, adapter, paligemma_tokenizer(base), PointGrammar(), POINT_TEMPLATE)


def _import(
    name: str,
    base: Path,
    out: Path,
    adapter: Path | None,
    tokenizer: Tokenizer,
    grammar: PointGrammar | DetectionGrammar,
    template: str,
) -> CheckpointSpec:
    spec = paligemma_spec(base, grammar, template)
    _check_pixels(base, spec.image.size)
    model: VisionLanguageModel | PeftModel = load_paligemma(Path(spec.base))
    training: dict[str, Any] = {"imported": name, "base": base.resolve().name}
    if adapter is not None:
        model = load_adapter(model, adapter)
        weights = adapter / ADAPTER_FILES[1]
        training["file"] = {"name": weights.name, **file_entry(weights).model_dump()}
    spec = spec.model_copy(update={"training": training})
    with new_checkpoint(out) as directory:
        tokenizer.save(str(directory / TOKENIZER_FILE))
        save_checkpoint(directory, make_model(model, None), spec, directory / TOKENIZER_FILE)
    return spec


def paligemma_spec(directory: Path, grammar: PointGrammar | DetectionGrammar, template: str) -> CheckpointSpec:
    """The spec of a new checkpoint on this base, which it refers to. Raises `CheckpointError`."""
    config = load_paligemma_config(directory)
    image_tokens, special = image_tokens_of(config), _special_tokens(directory, config)
    prompt = Prompt(
        template=template, bos_token_id=special["bos"], pad_token_id=special["pad"],
        image_token_id=config.image_token_id, loc_token_id=None, bos_behind_image=True,
    )  # fmt: skip
    return CheckpointSpec(
        kind="generator",
        image=ImageTransform(mode="stretch", size=config.vision_config.image_size),
        image_tokens=image_tokens,
        box_frame="image",
        prompt=prompt,
        buckets=buckets_of(image_tokens, SUFFIX_TOKENS),
        present_threshold=0,
        generation=Generation(
            grammar=grammar, eos_token_id=special["eos"], max_instances=INSTANCES, bidirectional=True
        ),
        base=str(directory.resolve()),
    )


def paligemma_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a PaliGemma directory. Raises `CheckpointError`, too where its tokens are another model's."""
    config = load_paligemma_config(directory)  # first: it says what is wrong with a folder that is no PaliGemma
    tokenizer = load_tokenizer(directory)
    image, rows = config.image_token_id, config.text_config.vocab_size
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    tokens = max(tokenizer.get_vocab().values()) + 1
    named, fault = tokenizer.token_to_id(IMAGE_MARK), None
    if not rows / 2 < tokens <= rows:
        fault = f"has {tokens} tokens, and the model {rows}"
    elif image >= rows:
        fault = f"has no token {image}, which is the image in config.json, and the model has {rows}"
    elif tokenizer.id_to_token(image) not in (None, IMAGE_MARK) or named not in (None, image):
        fault = f"has {tokenizer.id_to_token(image)!r} as token {image}, which is the image in config.json"
    else:
        for name, id in _special_tokens(directory, config).items():
            if id not in special:
                fault = f"has {tokenizer.id_to_token(id)!r} as token {id}, which is {name}_token_id in config.json"
    if fault:
        raise CheckpointError(f"{directory / TOKENIZER_FILE} {fault}: one of the two files is of another model")
    return tokenizer


def _special_tokens(directory: Path, config: PaliGemmaConfig) -> dict[str, int]:
    """Ids of bos, eos and pad. Raises `CheckpointError`."""
    special = {name: getattr(config.text_config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if unfit := [f"{name}_token_id {value}" for name, value in special.items() if not isinstance(value, int)]:
        raise CheckpointError(f"{directory}/config.json has {', '.join(unfit)} in its text_config: one token each")
    return special


def _check_pixels(directory: Path, side: int) -> None:
    """Raises `CheckpointError` if preprocessor_config.json says otherwise than what PaliGemmas are given."""
    file = directory / "preprocessor_config.json"
    if not file.is_file():
        return
    with reading(file):
        stated = json.loads(file.read_text())
        usual = {
            "image_mean": list(PaliGemma.MEAN), "image_std": list(PaliGemma.STD),
            "resample": int(Image.Resampling.BICUBIC), "size": {"height": side, "width": side},
        }  # fmt: skip
        for name, value in usual.items():
            if stated.get(name, value) != value:
                raise CheckpointError(f"{file} has {name} {stated[name]}; only {value} is built in")


def _loc(step: int) -> str:
    return f"<loc{step:04d}>"
