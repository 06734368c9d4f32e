"""Loads weights of others completely, or refuses them with a one-line error. No weight is skipped, invented or
downloaded, and no code is run."""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
)
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from referent.modeling.stem import ConvStemLlava

ADAPTER_FILES = "adapter_config.json", "adapter_model.safetensors"
LFS_POINTER = b"version https://git-lfs"  # how the text begins that stands for a file which was not fetched
GEMMAS = ("gemma", "gemma2")  # language models of PaliGemma and PaliGemma-2
LAYOUTS = {r"^model\.language_model\.lm_head": "lm_head"}  # beside those that transformers itself maps
MISMATCH = re.compile(r"size mismatch for (\S+): .*?(\[[\d, ]*\]).*?(\[[\d, ]*\])")  # as torch says it
NAMED = 3  # of many weights
WEIGHT_SUFFIXES = (".safetensors", ".bin")
ADDED = re.compile(r"lora_|trainable_tokens_")  # in the names of an adapter's weights
MERGE = "merge it into its base with peft's merge_and_unload, and take that"
SAMPLES, SAMPLE_BYTES = 256, 4096  # of each file

Weights = dict[str, torch.Tensor]  # by name
VisionLanguageModel = LlavaForConditionalGeneration | PaliGemmaForConditionalGeneration


class CheckpointError(RuntimeError):
    """A checkpoint directory lacks a part or holds one that does not fit; the message is one line with the remedy."""


def load_llava(
    directory: Path, dtype: torch.dtype | None = None, quantization: QuantizationConfigMixin | None = None
) -> LlavaForConditionalGeneration:
    """Load a local LLaVA directory with the class that its config names, in the dtype of its files where none is given;
    nothing is downloaded. Raises `CheckpointError`."""
    config = load_llava_config(directory)
    has_stem = ConvStemLlava.__name__ in (config.architectures or [])
    model_class = ConvStemLlava if has_stem else LlavaForConditionalGeneration
    return _load(directory, config, model_class, dtype, quantization)


def load_paligemma(
    directory: Path, dtype: torch.dtype | None = None, quantization: QuantizationConfigMixin | None = None
) -> PaliGemmaForConditionalGeneration:
    """As `load_llava`, a PaliGemma or PaliGemma-2 directory. Raises `CheckpointError`."""
    config = load_paligemma_config(directory)
    return _load(directory, config, PaliGemmaForConditionalGeneration, dtype, quantization)


def load_base(directory: Path, dtype: torch.dtype | None = None) -> VisionLanguageModel:
    """As `load_llava`, a directory of either family. Raises `CheckpointError`."""
    paligemma = _stated(directory).get("model_type") == PaliGemmaConfig.model_type
    return load_paligemma(directory, dtype) if paligemma else load_llava(directory, dtype)


def _load(
    directory: Path,
    config: PreTrainedConfig,
    model_class: Any,
    dtype: torch.dtype | None,
    quantization: QuantizationConfigMixin | None = None,
) -> Any:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of what does not fit; the error says it
    try:
        with reading(directory):
            loaded: Any = model_class.from_pretrained(
                str(directory), config=config, dtype=dtype or "auto", quantization_config=quantization,
                local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, key_mapping=LAYOUTS,
            )  # fmt: skip
    finally:
        logging.set_verbosity(verbosity)
    llava, info = loaded
    misshaped = [_misshaped(name, list(found), list(expected)) for name, found, expected in info["mismatched_keys"]]
    remedy = "it is incomplete or of another model, get it again"
    refuse_unfit(f"the base {directory}", remedy, info["missing_keys"], info["unexpected_keys"], misshaped)
    return llava


def load_llava_config(directory: Path) -> LlavaConfig:
    """The configuration of a local LLaVA directory. Raises `CheckpointError`."""
    stated = _stated(directory)
    with reading(directory / "config.json"):
        if stated.get("model_type") != LlavaConfig.model_type or "vision_config" not in stated:
            raise CheckpointError(
                f"{directory} holds no LLaVA as transformers lays it out (model_type {LlavaConfig.model_type} with a "
                f"vision_config), but {stated.get('architectures')}: take an edition of LLaVA-1.5 whose name ends in "
                "-hf"
            )
        return LlavaConfig.from_pretrained(str(directory), local_files_only=True)


def load_paligemma_config(directory: Path) -> PaliGemmaConfig:
    """The configuration of a local PaliGemma directory. Raises `CheckpointError`."""
    stated = _stated(directory)
    with reading(directory / "config.json"):
        language_model = (stated.get("text_config") or {}).get("model_type")
        if stated.get("model_type") != PaliGemmaConfig.model_type or language_model not in GEMMAS:
            raise CheckpointError(
                f"{directory} holds no PaliGemma as transformers lays it out (model_type {PaliGemmaConfig.model_type} "
                f"with a text_config of {' or '.join(GEMMAS)}), but {stated.get('architectures')}: take an edition "
                "such as paligemma2-3b-mix-448"
            )
        return PaliGemmaConfig.from_pretrained(str(directory), local_files_only=True)


def _stated(directory: Path) -> dict[str, Any]:
    """What the configuration of a model's directory says. Raises `CheckpointError`."""
    if not directory.is_dir():
        raise CheckpointError(f"there is no folder {directory}")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is not a model's directory: it has no config.json")
    refuse_pointers(directory)
    with reading(directory / "config.json"):
        return dict(PreTrainedConfig.get_config_dict(str(directory), local_files_only=True)[0])


def base_digest(directory: Path) -> str:
    """A digest that tells bases apart without reading them completely: from sizes of the weight files and samples."""
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.iterdir() if path.suffix in WEIGHT_SUFFIXES):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for index in range(SAMPLES):
                stream.seek(index * size // SAMPLES)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def load_adapter(llava: VisionLanguageModel, directory: Path, trainable: bool = False) -> PeftModel:
    """The model with a PEFT adapter around it. Raises `CheckpointError`."""
    refuse_pointers(directory)
    for name in ADAPTER_FILES:  # peft would ask the hub for what is not here
        if not (directory / name).is_file():
            inside = directory / "adapter"
            remedy = f"name {inside}" if (inside / name).is_file() else "copy the whole checkpoint again"
            raise CheckpointError(f"{directory} has no {name}: {remedy}")
    what, remedy = f"the adapter {directory}", "it was trained on another base, or is incomplete: copy it again"
    with reading(directory):
        config = PeftConfig.from_pretrained(str(directory))
        _refuse_whole_weights(what, config, directory / ADAPTER_FILES[1])
        config.inference_mode = not trainable
        config.base_model_name_or_path = llava.name_or_path  # peft would ask the hub about another name
        adapted = PeftModel(llava, config)
        try:
            result = adapted.load_adapter(str(directory), "default", is_trainable=trainable)
        except RuntimeError as error:  # its message lists all weights of another shape
            refuse_unfit(what, remedy, misshaped=[_misshaped(*found) for found in MISMATCH.findall(str(error))])
            raise
        except KeyError as error:  # a trained token's embedding
            refuse_unfit(what, remedy, missing=error.args)
    refuse_unfit(what, remedy, result.missing_keys, result.unexpected_keys)
    weights = get_peft_model_state_dict(adapted)
    _refuse_broken(what, weights, remedy)
    tied = [name for name in weights if "lora_embedding" in name or "lm_head." in name]
    if tied and llava.config.get_text_config().tie_word_embeddings:
        raise CheckpointError(
            f"{what} changes {_some(tied)}, and the base's lm_head is its embedding, so neither can be merged alone: "
            "train it without them"
        )
    return adapted


def adapter_base(directory: Path) -> str | None:
    """The last part of the name of the base that a PEFT adapter says it was trained on. Raises `CheckpointError`."""
    with reading(directory):
        name = PeftConfig.from_pretrained(str(directory)).base_model_name_or_path
    return PurePath(name).name if name else None


def _refuse_whole_weights(what: str, config: PeftConfig, file: Path) -> None:
    """Only matrices that are added to those of the base are taken, and embeddings of trained tokens."""
    if modules := getattr(config, "modules_to_save", None):
        raise CheckpointError(f"{what} has whole modules, {_some(modules)}: {MERGE}")
    if getattr(config, "bias", "none") != "none" or getattr(config, "lora_bias", False):
        raise CheckpointError(f"{what} has biases: {MERGE}")
    with safe_open(file, "pt") as weights:
        whole = [name for name in weights.keys() if not ADDED.search(name)]  # noqa: SIM118 (it is not a dict)
    if whole:
        raise CheckpointError(f"{what} has whole weights, {_some(whole)}: {MERGE}")


def check_weights(
    what: str, expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], remedy: str
) -> None:
    """Whether the weights found are those expected, by name and shape, and finite. Raises `CheckpointError`."""
    both = sorted(expected.keys() & found.keys())
    misshaped = [
        _misshaped(name, list(found[name].shape), list(expected[name].shape))
        for name in both
        if found[name].shape != expected[name].shape
    ]
    refuse_unfit(what, remedy, expected.keys() - found.keys(), found.keys() - expected.keys(), misshaped)
    _refuse_broken(what, found, remedy)


def refuse_unfit(
    what: str,
    remedy: str,
    missing: Collection[str] = (),
    surplus: Collection[str] = (),
    misshaped: Collection[str] = (),
) -> None:
    """Raises `CheckpointError` if any weight is named."""
    faults = []
    if missing:
        faults.append(f"lacks {_some(missing)}")
    if surplus:
        faults.append(f"has {_some(surplus)}, which the model has not")
    if misshaped:
        faults.append(f"has {_some(misshaped)}")
    if faults:
        raise CheckpointError(f"{what} {', and '.join(faults)}: {remedy}")


def refuse_pointers(directory: Path) -> None:
    """Raises `CheckpointError` for a file of the directory that Git LFS did not fetch."""
    with reading(directory):
        for file in sorted(path for path in directory.iterdir() if path.is_file()):
            refuse_pointer(file)


def refuse_pointer(file: Path) -> None:
    """Raises `CheckpointError` if Git LFS did not fetch the file."""
    with reading(file), file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(f"{file} is a pointer of Git LFS, not the file: git lfs pull fetches it")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any error of libraries for damaged files into a `CheckpointError` of one line that names `path`."""
    try:
        yield
    except CheckpointError:
        raise
    except UnpicklingError as error:  # torch's own message tells how to run the code
        raise CheckpointError(f"{path} holds more than weights, or is damaged: only weights are loaded") from error
    except Exception as error:  # parsers of damaged files raise whatever they hit
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path} cannot be loaded, get it again: {reason}") from error


def _refuse_broken(what: str, weights: Mapping[str, torch.Tensor], remedy: str) -> None:
    if broken := [name for name, tensor in weights.items() if not tensor.is_meta and not tensor.isfinite().all()]:
        raise CheckpointError(f"{what} has numbers that are not finite in {_some(broken)}: {remedy}")


def _misshaped(name: str, found: object, expected: object) -> str:
    return f"{name} {found} instead of {expected}"


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
