"""Checkpoints that lack something, or hold what is another's: refused in one line by all that load them."""

import json
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from referent.modeling.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_checkpoint_spec,
    new_checkpoint,
    save_checkpoint,
)
from referent.modeling.llava import llava_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
Damage = Callable[[Path], object]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that has its base with it."""
    copy = tmp_path / "checkpoint"
    copytree(tiny_checkpoint, copy)
    _edit("referent.json", base="base")(copy)
    return copy


def _edit(name: str, **fields: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))

    return damage


def _weights(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / name)), folder / name, {"format": "pt"})

    return damage


def _without(part: str) -> Callable[[dict], dict]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def _cut(part: str) -> Callable[[dict], dict]:
    """Half of the first axis of the weights named so."""
    return lambda weights: {
        name: tensor[: len(tensor) // 2].clone() if part in name else tensor for name, tensor in weights.items()
    }


def _more(name: str) -> Callable[[dict], dict]:
    return lambda weights: weights | {name: torch.zeros(3)}


def _write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _end_off(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def _in_shards(folder: Path) -> None:
    """The base in several files, one of which did not arrive."""
    llava = LlavaForConditionalGeneration.from_pretrained(folder / "base")
    (folder / "base" / "model.safetensors").unlink()
    llava.save_pretrained(folder / "base", max_shard_size=100_000)
    sorted(folder.glob("base/model-*"))[1].unlink()


def _shard_of_other_weights(folder: Path) -> None:
    _in_shards(folder)
    shards = sorted(folder.glob("base/model-*"))
    missing = shards[0].with_name(shards[0].name.replace("00001", "00002"))
    missing.write_bytes(shards[0].read_bytes())


class _Code:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


def _code_in_the_base(folder: Path) -> None:
    (folder / "base/model.safetensors").unlink()
    (folder / "base/pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": _Code()}, protocol=2))


BASE, ADAPTER, HEAD = "base/model.safetensors", "adapter/adapter_model.safetensors", "head.safetensors"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "base: no vision tower": (_weights(BASE, _without("vision_tower")), r"base lacks .*vision_tower.* and \d+ more"),
    "base: no projector": (_weights(BASE, _without("multi_modal_projector")), "base lacks .*multi_modal_projector"),
    "base: no output layer": (_weights(BASE, _without("lm_head")), "base lacks lm_head.weight"),
    "base: a layer too many": (_weights(BASE, _more("language_model.model.layers.9.x.weight")), "layers.9.x.weight, "),
    "base: another width": (_weights(BASE, _cut("layers.1.mlp.up_proj")), r"up_proj.weight \[48, 64\] instead of \[96"),
    "base: a pointer of LFS": (_write(BASE, POINTER), "git lfs pull"),
    "base: cut off": (_end_off(BASE), "base cannot be loaded"),
    "base: empty": (_write(BASE, b""), "base cannot be loaded"),
    "base: gone": (lambda folder: rmtree(folder / "base"), "needs the base base, which is not there"),
    "base: no configuration": (lambda folder: (folder / "base/config.json").unlink(), "no config.json"),
    "base: a pointer for its configuration": (_write("base/config.json", POINTER), "git lfs pull"),
    "base: half a configuration": (_write("base/config.json", "{"), "cannot be loaded"),
    "base: another model": (_edit("base/config.json", model_type="llava_next"), "no LLaVA as transformers lays it out"),
    "base: half a PaliGemma": (_edit("base/config.json", model_type="paligemma"), "no PaliGemma as transformers lays"),
    "base: the original layout": (
        _write("base/config.json", '{"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}'),
        "LlavaLlamaForCausalLM.*-hf",
    ),
    "base: no weights": (lambda folder: (folder / BASE).unlink(), "no file named model.safetensors"),
    "base: a shard is missing": (_in_shards, "model-00002-of"),
    "base: a shard twice": (_shard_of_other_weights, "base lacks"),
    "base: code": (_code_in_the_base, "base .*only weights"),
    "adapter: a layer is missing": (_weights(ADAPTER, _without("layers.1.")), "adapter lacks .*layers.1.* and 3 more"),
    "adapter: half of each": (_weights(ADAPTER, _without("lora_B")), "adapter lacks .*lora_B"),
    "adapter: no trained token": (_weights(ADAPTER, _without("token_adapter")), "adapter lacks .*token"),
    "adapter: names of a text model": (
        _weights(ADAPTER, lambda w: {name.replace("model.language_model.", "model."): t for name, t in w.items()}),
        "adapter .*(lacks|has)",
    ),
    "adapter: of a larger base": (
        _weights(ADAPTER, lambda w: {n: torch.cat([t, t], -1) if "lora_A" in n else t for n, t in w.items()}),
        r"lora_A.*\[16, 128\] instead of \[16, 64\] and 3 more",
    ),
    "adapter: more layers": (
        _weights(ADAPTER, lambda w: w | {n.replace("s.1.", "s.7."): t.clone() for n, t in w.items() if "s.1." in n}),
        "adapter has .*layers.7",
    ),
    "adapter: not a number": (
        _weights(ADAPTER, lambda w: {n: t * torch.nan if "layers.0.self_attn.q" in n else t for n, t in w.items()}),
        "not finite in .*layers.0.self_attn.q_proj",
    ),
    "adapter: gone": (lambda folder: rmtree(folder / "adapter"), "lacks its adapter/"),
    "adapter: no configuration": (lambda f: (f / "adapter/adapter_config.json").unlink(), "no adapter_config.json"),
    "adapter: no weights": (lambda folder: (folder / ADAPTER).unlink(), "no adapter_model.safetensors"),
    "adapter: a pointer of LFS": (_write(ADAPTER, POINTER), "git lfs pull"),
    "adapter: cut off": (_end_off(ADAPTER), "adapter cannot be loaded"),
    "adapter: not announced": (_edit("referent.json", adapter=False), "saved without one"),
    "head: gone": (lambda folder: (folder / HEAD).unlink(), "No such file.*head.safetensors"),
    "head: a pointer of LFS": (_write(HEAD, POINTER), "git lfs pull"),
    "head: cut off": (_end_off(HEAD), "head.safetensors cannot be loaded"),
    "head: no scores": (_weights(HEAD, _without("score")), "lacks score.bias, score.weight"),
    "head: of another width": (_weights(HEAD, _cut("mlp.3")), r"mlp.3.bias \[128\] instead of \[256\]"),
    "head: of another project": (_weights(HEAD, _more("visual_prompt")), "has visual_prompt, which"),
    "head: not a number": (_weights(HEAD, lambda w: w | {"score.bias": torch.tensor([torch.inf])}), "not finite in"),
    "tokenizer: gone": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json cannot be loaded"),
    "tokenizer: a pointer of LFS": (_write("tokenizer.json", POINTER), "git lfs pull"),
    "tokenizer: cut off": (_end_off("tokenizer.json"), "tokenizer.json cannot be loaded"),
    "spec: gone": (lambda folder: (folder / "referent.json").unlink(), "no referent.json"),
    "spec: cut off": (_end_off("referent.json"), "referent.json cannot be loaded"),
    "spec: unknown field": (_edit("referent.json", colour="red"), "colour"),
    "spec: images of another size": (_edit("referent.json", image={"size": 336}), "images of side: 336 against 28"),
    "spec: other image tokens": (_edit("referent.json", image_tokens=576), "tokens an image: 576 against 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.filterwarnings("ignore")  # what peft warns of, the error says
def test_a_damaged_checkpoint_is_refused_in_one_line(checkpoint: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message) as refused:
        load_checkpoint(checkpoint)
    assert str(checkpoint) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("part", ["vision_tower", "layers.1.self_attn.q_proj", "layers.0.mlp.down_proj", "lm_head"])
def test_a_base_of_the_same_shape_with_other_weights_is_refused(checkpoint: Path, part: str) -> None:
    _weights(BASE, lambda w: {n: t + 0.01 if part in n and t.ndim == 2 else t for n, t in w.items()})(checkpoint)
    with pytest.raises(CheckpointError, match="trained on another base than base: set `base`"):
        load_checkpoint(checkpoint)


def test_the_copy_itself_is_sound(checkpoint: Path) -> None:
    load_checkpoint(checkpoint)


def test_a_tokenizer_of_more_words_than_the_base_has_rows_is_refused(checkpoint: Path) -> None:
    tokenizer = llava_tokenizer(checkpoint)
    tokenizer.add_tokens([f"<extra {index}>" for index in range(100)])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="rows of embeddings"):
        load_checkpoint(checkpoint)


def test_everyone_may_read_what_is_saved(checkpoint: Path, tmp_path: Path) -> None:
    model, spec = load_checkpoint(checkpoint)
    saved = tmp_path / "saved"
    spec = spec.model_copy(update={"base": str(checkpoint / "base")})
    save_checkpoint(saved, model, spec, checkpoint / "tokenizer.json")
    model.llava = model.llava.merge_and_unload()
    save_checkpoint(saved / "merged", model, spec.model_copy(update={"base": "base"}), checkpoint / "tokenizer.json")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in saved.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}
    assert (load_checkpoint_spec(saved).adapter, load_checkpoint_spec(saved / "merged").adapter) == (True, False)
    load_checkpoint(saved / "merged")


def test_a_checkpoint_that_could_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_checkpoint(tmp_path / "deep" / "out") as folder:
            (folder / "half").write_text("written")
            raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        write()
    assert not list(tmp_path.iterdir())
