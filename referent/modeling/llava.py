"""Any local LLaVA directory (transformers layout) as the base of a new checkpoint: its spec, tokenizer and adapter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from peft import LoraConfig
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import LlavaConfig

from referent.core.bundle import TOKENIZER_FILE
from referent.core.grammar import BoxGrammar, Generation
from referent.core.packing import Bucket
from referent.core.prompts import LOC_MARK, Prompt
from referent.core.transform import ImageTransform
from referent.modeling.checkpoint import CheckpointSpec, load_tokenizer
from referent.modeling.grounding import image_tokens_of
from referent.modeling.vpp import VisualPromptsShape
from referent.modeling.weights import CheckpointError, load_llava_config, reading

FAMILIES = {"text_config": "llama", "vision_config": "clip_vision_model"}
SENTENCEPIECE_FILE = "tokenizer.model"
LOC_TEMPLATE = "<image>\nFind the object referred to: {expression}[LOC]"
TEMPLATES = {  # visual-grounding-api's own, to the letter
    "vg": "<image>\nFind the object referred to: {expression} [LOC]",
    "vg-text": (
        "USER: <image>\nLocate the following object in the image and provide its bounding box as normalized "
        "coordinates [x_center, y_center, width, height] where all values are between 0 and 1.\nObject: {expression}\n"
        "Respond ONLY with four numbers in square brackets, e.g. [0.5, 0.3, 0.2, 0.4].\nASSISTANT:"
    ),
}
TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v)_proj"  # CLIP has modules of these names too
ALL_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
# of models trained here in text: three decimals, since two would round a box to 3 pixels of 336
TRAINED_GRAMMAR = BoxGrammar(order="cxcywh", decimals=3, lead=" ")
EXPRESSIONS = (1, 4, 8, 16)  # slots of the buckets
SUFFIX_TOKENS = 28  # of one expression with its prompt, amply


def llava_spec(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    center_crop: bool = False,
    plain_text_loc: bool = False,
    kind: str = "head",
    visual_prompts: VisualPromptsShape | None = None,
) -> CheckpointSpec:
    """The spec of a new checkpoint on this base, which it refers to.

    `center_crop` is CLIP's own preprocessing with boxes of the whole image, as visual-grounding-api has it;
    `plain_text_loc` its [LOC], a word in pieces instead of a spare row of the vocabulary. With `visual_prompts` images
    are padded as LLaVA's own code does it. Raises `CheckpointError`.
    """
    config = load_llava_config(directory)
    check_families(directory, config)
    text, vision, image_tokens = config.text_config, config.vision_config, image_tokens_of(config)
    image_tokens += visual_prompts.queries if visual_prompts else 0
    template = TEMPLATES.get(template or "", template) or (TEMPLATES["vg"] if plain_text_loc else LOC_TEMPLATE)
    padding = next(
        (i for i in (getattr(config, "pad_token_id", None), text.pad_token_id, text.eos_token_id) if i is not None), 0
    )
    loc = None
    if template.endswith(LOC_MARK) and not plain_text_loc:
        loc = _spare_row(tokenizer, text.vocab_size, config.image_token_id, padding)
    prompt = Prompt(
        template=template, bos_token_id=text.bos_token_id, pad_token_id=padding,
        image_token_id=config.image_token_id, loc_token_id=loc,
    )  # fmt: skip
    before = len(tokenizer.encode(template.split("<image>")[0], add_special_tokens=False).ids)
    after = len(tokenizer.encode(template.split("<image>")[1], add_special_tokens=False).ids)
    suffix = max(SUFFIX_TOKENS, after + SUFFIX_TOKENS // 2)
    mode: Literal["pad", "center_crop", "letterbox"] = "center_crop" if center_crop else "letterbox"
    if visual_prompts:
        mode = "pad"
    return CheckpointSpec(
        image=ImageTransform(mode=mode, size=vision.image_size),
        detector_image=visual_prompts and visual_prompts.detector_image, visual_prompts=visual_prompts,
        image_tokens=image_tokens, box_frame="image" if center_crop else "transformed", prompt=prompt,
        buckets=buckets_of(1 + before + image_tokens, suffix), present_threshold=None, base=str(directory.resolve()),
        kind=kind,
        generation=text_generation(text.eos_token_id) if kind == "generator" else None,
    )  # fmt: skip


def check_families(directory: Path, config: LlavaConfig) -> None:
    """Raises `CheckpointError` unless it consists of CLIP and Llama, as LLaVA-1.5 does, since pixels are normalised for
    CLIP and layers are run as Llama's.
    """
    found = {part: getattr(config, part).model_type for part in FAMILIES}
    if found != FAMILIES:
        raise CheckpointError(
            f"{directory} is made of {' and '.join(found.values())}, LLaVA-1.5 of {' and '.join(FAMILIES.values())}: "
            "take an edition such as llava-1.5-7b-hf"
        )


def add_visual_prompts(spec: CheckpointSpec, shape: VisualPromptsShape) -> CheckpointSpec:
    """The spec of a model with visual position prompts added."""
    prompted = {
        "visual_prompts": shape,
        "detector_image": shape.detector_image,
        "image_tokens": spec.image_tokens + shape.queries,
        "buckets": tuple(Bucket(_multiple(tokens + shape.queries, 32), count) for tokens, count in spec.buckets),
    }
    return CheckpointSpec(**spec.model_dump() | prompted)


def lora_config(
    trained_tokens: Sequence[int], rank: int = 16, alpha: int = 32, dropout: float = 0.05, targets: str = TARGETS
) -> LoraConfig:
    """visual-grounding-api's adapter; embeddings of `trained_tokens` are trained beside it."""
    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets,
        trainable_token_indices={"embed_tokens": sorted(trained_tokens)} if trained_tokens else None,
    )  # fmt: skip


def buckets_of(prefix_tokens: int, suffix_tokens: int) -> tuple[Bucket, ...]:
    """For prefixes and suffixes of about these lengths."""
    return tuple(Bucket(_multiple(prefix_tokens + (n + 1) * suffix_tokens, 32), n) for n in EXPRESSIONS)


def text_generation(eos_token_id: object, grammar: BoxGrammar = TRAINED_GRAMMAR) -> Generation:
    """How a model answers in text. Raises `CheckpointError`."""
    if not isinstance(eos_token_id, int):
        raise CheckpointError(f"text_config.eos_token_id is {eos_token_id}; answers in text need one end token")
    return Generation(grammar=grammar, eos_token_id=eos_token_id)


def llava_tokenizer(directory: Path) -> Tokenizer:
    """The directory's tokenizer.json, or its sentencepiece model converted. Raises `CheckpointError`."""
    if (directory / TOKENIZER_FILE).is_file():
        return load_tokenizer(directory)
    if not (directory / SENTENCEPIECE_FILE).is_file():
        raise CheckpointError(f"{directory} has neither {TOKENIZER_FILE} nor {SENTENCEPIECE_FILE}")
    with reading(directory / SENTENCEPIECE_FILE):
        tokenizer = convert_sentencepiece(directory / SENTENCEPIECE_FILE)
    added = directory / "added_tokens.json"
    if added.is_file():
        with reading(added):
            names = sorted(json.loads(added.read_text()).items(), key=lambda item: item[1])
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name, _ in names])
    return tokenizer


def convert_sentencepiece(file: Path) -> Tokenizer:
    """LLaMA's sentencepiece BPE as a fast tokenizer: a space before the text, unknown characters as bytes."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(file))
    size = pieces.get_piece_size()
    vocabulary = {pieces.id_to_piece(index): index for index in range(size)}
    merges = []
    for piece, index in vocabulary.items():
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += [(index, *pair) for pair in sorted(known, key=lambda pair: tuple(vocabulary[part] for part in pair))]
    merges.sort(key=lambda merge: merge[0])  # sentencepiece numbers BPE pieces in the order they were learnt
    unknown = pieces.id_to_piece(pieces.unk_id())
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            [(left, right) for _, left, right in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    control = [pieces.id_to_piece(i) for i in range(size) if pieces.is_control(i) or pieces.is_unknown(i)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in control])
    return tokenizer


def _spare_row(tokenizer: Tokenizer, rows: int, *taken: int) -> int:
    """The first row of the embedding that no token has. Raises `CheckpointError`."""
    spare = max(tokenizer.get_vocab_size(with_added_tokens=True), *(index + 1 for index in taken))
    if spare >= rows:
        raise CheckpointError(
            f"all {rows} rows of the vocabulary are taken, so {LOC_MARK} cannot be a token: use --plain-text-loc"
        )
    return spare


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of
