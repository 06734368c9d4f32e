"""Sources of PaliGemma-2 and point-vlm (golden/pv of the published data): whole ones, and damaged ones that are
refused."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.build import export
from referent.modeling.checkpoint import CheckpointError, load_checkpoint
from referent.modeling.importers.paligemma import import_paligemma, import_point_vlm
from referent.modeling.weights import load_adapter, load_paligemma

BASE, ADAPTER = "paligemma2-tiny-pt-224", "point-vlm-tiny"


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "pv"


def _write_zeros(file: Path, shapes: dict[str, list[int]], dtype: str, width: int) -> None:
    """A safetensors file of zeros that takes no place on the disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = width * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(stream.tell() + offset)


def test_every_weight_of_the_full_size_finds_its_place(golden: Path, tmp_path: Path) -> None:
    keys = json.loads((golden / "keys_3b.json").read_text())
    config = {
        "model_type": "paligemma", "image_token_index": 257152, "projection_dim": 2304, "hidden_size": 2304,
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "projection_dim": 2304,
            "vision_use_head": False,
        },
        "text_config": {
            "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
            "num_hidden_layers": 26, "num_key_value_heads": 4, "vocab_size": 257216,
        },
    }  # fmt: skip
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    _write_zeros(base / "model.safetensors", keys["base"], "BF16", 2)
    (adapter / "adapter_config.json").write_bytes((golden / ADAPTER / "adapter_config.json").read_bytes())
    _write_zeros(adapter / "adapter_model.safetensors", keys["adapter"], "F32", 4)
    paligemma = load_paligemma(base)  # mapped, not read
    assert paligemma.num_parameters() == keys["base_parameters"] == 3_032_242_416
    model = load_adapter(paligemma, adapter)
    lora = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    assert len(lora) == len(keys["adapter"]) == 526
    language = sum(parameter.numel() for name, parameter in lora.items() if "language_model" in name)
    vision = sum(parameter.numel() for name, parameter in lora.items() if "vision_tower" in name)
    assert (language, vision) == (keys["adapter_language_elements"], keys["adapter_vision_elements"])


Damage = Callable[[Path], object]


def _weights(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / name)), folder / name, {"format": "pt"})

    return damage


def _edit(name: str, **fields: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))

    return damage


def _text_config(**fields: object) -> Damage:
    def damage(folder: Path) -> None:
        text = json.loads((folder / BASE / "config.json").read_text())["text_config"]
        _edit(f"{BASE}/config.json", text_config=text | fields)(folder)

    return damage


def _without(part: str) -> Callable[[dict], dict]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def _write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def _end_off(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def _remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _text(name: str, old: str, new: str) -> Damage:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def _with_lm_head(folder: Path) -> None:
    """LoRA on the head too, whose weights are the embedding's."""
    config = json.loads((folder / ADAPTER / "adapter_config.json").read_text())
    _edit(f"{ADAPTER}/adapter_config.json", target_modules=[*config["target_modules"], "lm_head"])(folder)
    name = "base_model.model.lm_head.lora"
    added = {f"{name}_A.weight": torch.ones(8, 64), f"{name}_B.weight": torch.ones(1728, 8)}
    _weights(f"{ADAPTER}/adapter_model.safetensors", lambda w: w | added)(folder)


def _fewer_tokens(folder: Path) -> None:
    content = json.loads((folder / BASE / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 600]
    (folder / BASE / "tokenizer.json").write_text(json.dumps(content))


def _deeper(folder: Path) -> None:
    """As in our own checkpoints."""
    (folder / ADAPTER / "adapter").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / ADAPTER / file).rename(folder / ADAPTER / "adapter" / file)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
OF_BASE, OF_ADAPTER = f"{BASE}/model.safetensors", f"{ADAPTER}/adapter_model.safetensors"
CONFIG, TOKENIZER, PIXELS = (f"{BASE}/{name}.json" for name in ("config", "tokenizer", "preprocessor_config"))
DAMAGES: dict[str, tuple[Damage, str]] = {
    "base: a layer is missing": (_weights(OF_BASE, _without("layers.1.mlp.up_proj")), "lacks .*layers.1.mlp.up_proj"),
    "base: no vision tower": (_weights(OF_BASE, _without("vision_tower")), r"lacks .*vision_tower.* and \d+ more"),
    "base: no projector": (_weights(OF_BASE, _without("projector")), "lacks .*multi_modal_projector"),
    "base: no embeddings": (_weights(OF_BASE, _without("embed_tokens")), "lacks .*(embed_tokens|lm_head)"),
    "base: a norm of Gemma-2": (
        _weights(OF_BASE, _without("post_feedforward_layernorm")),
        "lacks .*post_feedforward_layernorm",
    ),
    "base: weights of another model": (
        _weights(OF_BASE, lambda w: w | {"visual_prompt": torch.zeros(3)}),
        "visual_prompt, which the model has not",
    ),
    "base: other widths": (
        _weights(OF_BASE, lambda w: {n: t[:32].clone() if n.endswith("linear.weight") else t for n, t in w.items()}),
        r"linear.weight \[32, 32\] instead of \[64, 32\]",
    ),
    "base: a pointer of LFS": (_write(OF_BASE, POINTER), "git lfs pull"),
    "base: cut off": (_end_off(OF_BASE), "cannot be loaded"),
    "base: no weights": (_remove(OF_BASE), "no file named model.safetensors"),
    "base: no configuration": (_remove(CONFIG), "no config.json"),
    "base: half a configuration": (_write(CONFIG, b"{"), "cannot be loaded"),
    "base: a LLaVA": (_edit(CONFIG, model_type="llava"), "no PaliGemma"),
    "base: a text model": (_write(CONFIG, b'{"model_type": "gemma2", "architectures": ["Gemma2"]}'), "Gemma2.*take"),
    "base: another language model": (_text_config(model_type="llama"), "no PaliGemma"),
    "base: another text width": (_text_config(hidden_size=32), "instead of"),
    "base: no end token": (_text_config(eos_token_id=None), "eos_token_id None"),
    "base: two end tokens": (_text_config(eos_token_id=[1, 107]), r"eos_token_id \[1, 107\]"),
    "tokenizer: gone": (_remove(TOKENIZER), "tokenizer.json cannot be loaded"),
    "tokenizer: cut off": (_end_off(TOKENIZER), "tokenizer.json cannot be loaded"),
    "tokenizer: a pointer of LFS": (_write(TOKENIZER, POINTER), "git lfs pull"),
    "adapter: half of each": (_weights(OF_ADAPTER, _without("lora_B")), "lacks .*lora_B"),
    "adapter: a layer is missing": (_weights(OF_ADAPTER, _without("layers.1.mlp")), "lacks .*layers.1.mlp"),
    "adapter: no SigLIP": (_weights(OF_ADAPTER, _without("vision_tower")), "lacks .*vision_tower"),
    "adapter: more layers": (
        _weights(OF_ADAPTER, lambda w: w | {n.replace("s.1.", "s.7."): t.clone() for n, t in w.items() if "s.1." in n}),
        "has .*layers.7",
    ),
    "adapter: of a larger base": (
        _weights(OF_ADAPTER, lambda w: {n: torch.cat([t, t], -1) if "lora_A" in n else t for n, t in w.items()}),
        r"lora_A.*\[8, \d+\] instead of",
    ),
    "adapter: another rank": (_edit(f"{ADAPTER}/adapter_config.json", r=4), r"\[8, \d+\] instead of \[4, \d+\]"),
    "adapter: not a number": (
        _weights(OF_ADAPTER, lambda w: {n: t * torch.nan if "layers.0.mlp.up_proj" in n else t for n, t in w.items()}),
        "not finite in .*layers.0.mlp.up_proj",
    ),
    "adapter: cut off": (_end_off(OF_ADAPTER), "cannot be loaded"),
    "adapter: a pointer of LFS": (_write(OF_ADAPTER, POINTER), "git lfs pull"),
    "adapter: no weights": (_remove(OF_ADAPTER), "no adapter_model.safetensors"),
    "adapter: no configuration": (_remove(f"{ADAPTER}/adapter_config.json"), "no adapter_config.json"),
    "adapter: embeddings beside it": (
        _weights(OF_ADAPTER, lambda w: w | {"base_model.model.language_model.lm_head.weight": torch.zeros(1728, 64)}),
        "has whole weights, base_model.model.language_model.lm_head.weight: merge",
    ),
    "adapter: a projector": (
        _weights(OF_ADAPTER, lambda w: w | {"base_model.model.multi_modal_projector.linear.bias": torch.zeros(64)}),
        "has whole weights, .*multi_modal_projector.linear.bias: merge",
    ),
    "adapter: whole modules": (
        _edit(f"{ADAPTER}/adapter_config.json", modules_to_save=["multi_modal_projector"]),
        "has whole modules, multi_modal_projector: merge",
    ),
    "adapter: biases": (_edit(f"{ADAPTER}/adapter_config.json", bias="lora_only"), "has biases: merge"),
    "adapter: biases of its own": (
        _edit(f"{ADAPTER}/adapter_config.json", lora_bias=True, init_lora_weights=True),
        "has biases: merge",
    ),
    "adapter: the tied lm_head": (_with_lm_head, "lm_head is its embedding"),
    "tokenizer: of a smaller model": (_fewer_tokens, "has 600 tokens, and the model 1728"),
    "tokenizer: another image token": (_text(TOKENIZER, '"<image>"', '"<picture>"'), "'<picture>' as token 1664"),
    "config: a place for the image": (_edit(CONFIG, image_token_index=512), "'<loc0000>' as token 512"),
    "config: no image token": (_edit(CONFIG, image_token_index=None), "token"),
    "config: the image beyond all tokens": (_edit(CONFIG, image_token_index=9999), "no token 9999"),
    "config: a beginning that is a word": (_text_config(bos_token_id=5), "token 5, which is bos_token_id"),
    "pixels: another size": (_edit(PIXELS, size={"height": 448, "width": 448}), "size .*448.*; only .*224"),
    "pixels: another mean": (_edit(PIXELS, image_mean=[0.48, 0.46, 0.41]), "image_mean .*; only"),
    "pixels: bilinear": (_edit(PIXELS, resample=2), "resample 2; only 3"),
    "base: nowhere": (lambda folder: rmtree(folder / BASE), "there is no folder"),
    "adapter: one folder too high": (_deeper, "no adapter_config.json: name .*adapter"),
    "adapter: another method": (_edit(f"{ADAPTER}/adapter_config.json", peft_type="IA3"), "point-vlm-tiny"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.filterwarnings("ignore")  # what peft warns of, the error says
def test_a_damaged_source_is_refused_in_one_line_and_nothing_is_written(
    golden: Path, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    for part in (BASE, ADAPTER):
        copytree(golden / part, tmp_path / part, copy_function=lambda a, b: Path(b).write_bytes(Path(a).read_bytes()))
        (tmp_path / part).chmod(0o755)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as refused:
        import_point_vlm(tmp_path / ADAPTER, tmp_path / BASE, tmp_path / "new" / "out")
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} <= {BASE, ADAPTER}


def test_a_tokenizer_without_places_cannot_detect(golden: Path, tmp_path: Path) -> None:
    base = tmp_path / BASE
    copytree(golden / BASE, base, copy_function=lambda a, b: Path(b).write_bytes(Path(a).read_bytes()))
    base.chmod(0o755)
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace("<loc0500>", "<place0500>"))
    with pytest.raises(CheckpointError, match="<loc0000> to <loc1023>"):
        import_paligemma(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_stays(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="there already"):
        import_paligemma(golden / BASE, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("change", [{"generation": None}, {"bidirectional": False}, {"image": 448}, {"image": 336}])
def test_a_checkpoint_on_another_base_is_refused(golden: Path, tmp_path: Path, change: dict) -> None:
    import_point_vlm(golden / ADAPTER, golden / BASE, tmp_path / "out")
    file = tmp_path / "out" / "referent.json"
    spec = json.loads(file.read_text())
    if "image" in change:
        spec["image"]["size"] = change["image"]
    elif "bidirectional" in change:
        spec["generation"] |= change
    else:
        spec |= change | {"kind": "head"}
    file.write_text(json.dumps(spec))
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(tmp_path / "out")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_two_cases_are_enough_to_export_it_with_rounded_weights(golden: Path, tmp_path: Path) -> None:
    """Its lm_head is its embedding; and a graph that is traced with a batch of one would take no other."""
    import_point_vlm(golden / ADAPTER, golden / BASE, tmp_path / "points")
    bundle, _ = export(tmp_path / "points", "points", tmp_path / "repository", weights="int4", quick_parity=True)
    assert bundle.weights == "int4"
