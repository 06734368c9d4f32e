"""VPP-LLaVA's directories as checkpoints (golden/vpp of the published data); tests/modeling/test_vpp.py computes."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

from referent.modeling.checkpoint import CheckpointError, load_checkpoint, load_checkpoint_encoder
from referent.modeling.importers.vpp_llava import TEMPLATE, convert, import_vpp_llava, llava_config, place
from referent.modeling.llava import llava_tokenizer
from tests.support.visual_prompts import detector_tensors

SOURCE, CLIP = "llava-vpp-tiny", "clip-stock-tiny-336"
SIZES = {  # as the two published config.json have them
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "vpp"


@pytest.fixture(scope="module")
def imported(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "new" / "vpp"
    import_vpp_llava(golden / SOURCE, out, golden / CLIP)
    return out


@pytest.fixture
def source(golden: Path, tmp_path: Path) -> Path:
    return Path(copytree(golden / SOURCE, tmp_path / SOURCE))


def settings_of(golden: Path) -> dict:
    return json.loads((golden / SOURCE / "config.json").read_text())


@pytest.mark.parametrize("size", SIZES)
def test_all_weights_of_the_published_models_have_their_places(golden: Path, size: str) -> None:
    published = json.loads((golden / "keys_7b_13b.json").read_text())[size]
    weights = {name: torch.empty(shape, device="meta") for name, shape in published["keys"].items()}
    heads = {"num_key_value_heads": SIZES[size]["num_attention_heads"], "vocab_size": 32000}
    clip = {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    config = llava_config(golden, settings_of(golden) | SIZES[size] | heads | clip, None)
    model = place(size, config, convert(weights))
    assert len(weights) == {"7b": 1396, "13b": 1468}[size]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]
    assert sum(t.numel() for t in model.state_dict().values()) == published["elements_in_file"]


def test_the_checkpoint_holds_every_number_of_the_source(golden: Path, imported: Path) -> None:
    model, spec = load_checkpoint(imported, dtype=None)
    held = model.state_dict()
    for name, tensor in convert(load_file(golden / SOURCE / "model.safetensors")).items():
        assert torch.equal(held[name].float(), tensor.float()), name
    assert model.base.dtype == torch.bfloat16  # as stored
    assert {p.dtype for p in model.visual_prompts.parameters()} == {torch.float32}
    assert not (imported.stat().st_mode & 0o022)
    assert (spec.kind, spec.image.mode, spec.box_frame, spec.present_threshold) == (
        "generator", "pad", "transformed", 0.0,
    )  # fmt: skip
    assert (spec.image_tokens, spec.prompt.image_token_id) == (676, 512)


def test_shards_are_read_as_their_index_says(golden: Path, source: Path, tmp_path: Path, imported: Path) -> None:
    _settings(tie_word_embeddings=..., mm_use_im_patch_token=...)(source)  # false where nothing is said
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + index % 3}-of-00003.safetensors" for index, name in enumerate(weights)}
    for file in set(names.values()):
        save_file({name: tensor for name, tensor in weights.items() if names[name] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    import_vpp_llava(source, tmp_path / "out", golden / CLIP)
    expected = load_file(imported / "visual_prompts.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "visual_prompts.safetensors").items():
        assert torch.equal(tensor, expected[name])
    assert load_checkpoint(tmp_path / "out")


def test_prompts_are_tokenised_as_the_original_does_it(golden: Path, imported: Path) -> None:
    _, spec = load_checkpoint(imported)
    encoder = load_checkpoint_encoder(imported, spec)
    arrays = np.load(golden / "golden.npz")
    for case in json.loads((golden / "golden.json").read_text())["cases"][:2]:  # white space in 2 is made one
        ids = encoder.prefix + encoder.suffix(case["expression"])
        expected = arrays[f"{case['i']}.input_ids"][0].tolist()
        at = expected.index(-200)
        assert ids == expected[:at] + [spec.prompt.image_token_id] * 676 + expected[at + 1 :]
        assert TEMPLATE.replace("{expression}", case["expression"]) == case["prompt"]


@pytest.mark.parametrize(
    "text",
    [
        "the red circle on the left", " a space before", "two  spaces, three   of them ", "\nPlease", "café “odd” 2nd",
        "日本語 и русский 😀", "[0.12, 0.30, 0.45, 0.80]", "</s> <s> <unk> <0x0A>", "▁", "ﬁne ½ e\u0301", "x" * 300,
    ],
)  # fmt: skip
def test_the_tokenizer_is_the_sentencepiece_model(golden: Path, text: str) -> None:
    pieces = SentencePieceProcessor(model_file=str(golden / SOURCE / "tokenizer.model"))
    tokenizer = llava_tokenizer(golden / SOURCE)
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode(text, add_special_tokens=False).ids == pieces.encode(text)


def test_a_clip_that_was_not_trained_is_the_stock_one(golden: Path, source: Path, tmp_path: Path) -> None:
    _settings(unfreeze_mm_vision_tower=False)(source)
    import_vpp_llava(source, tmp_path / "out", golden / CLIP)
    model, spec = load_checkpoint(tmp_path / "out")
    with torch.inference_mode():
        features = model.encode_image(*detector_tensors(Image.open(golden / "landscape.png").convert("RGB"), spec))
    recorded = json.loads((golden / "golden.json").read_text())["mistakes"]["stock CLIP instead of tuned"]["vis"]
    difference = np.abs(features.numpy() - np.load(golden / "golden.npz")["0.visual_embeddings"]).max()
    assert difference == pytest.approx(recorded, rel=1e-4)


Damage = Callable[[Path], object]


def _settings(**updates: object) -> Damage:
    def damage(source: Path) -> None:
        file = source / "config.json"
        settings = json.loads(file.read_text()) | updates
        file.write_text(json.dumps({name: value for name, value in settings.items() if value is not Ellipsis}))

    return damage


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    def damage(source: Path) -> None:
        file = source / "model.safetensors"
        save_file({n: t.clone() for n, t in change(load_file(file)).items()}, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)

    return damage


def _without(part: str) -> Damage:
    return _weights(lambda weights: {name: tensor for name, tensor in weights.items() if part not in name})


def _write(name: str, content: bytes) -> Damage:
    return lambda source: (source / name).write_bytes(content)


def _cut(name: str) -> Damage:
    return lambda source: (source / name).write_bytes((source / name).read_bytes()[:1000])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda source: (source / "config.json").unlink(), "has no config.json"),
    "a config that is no JSON": (_write("config.json", b"{"), "config.json cannot be loaded"),
    "a config that is a list": (_write("config.json", b"[]"), "config.json cannot be loaded"),
    "another model": (_settings(model_type="llava"), "model_type 'llava' instead of 'llava_llama'"),
    "another projector": (_settings(mm_projector_type="linear"), "mm_projector_type 'linear'"),
    "another preprocessing": (_settings(image_aspect_ratio="square"), "image_aspect_ratio 'square'"),
    "another layer": (_settings(mm_vision_select_layer=-1), "mm_vision_select_layer -1"),
    "a config without sizes": (_settings(hidden_size=..., vocab_size=...), "no hidden_size, vocab_size"),
    "a config without heads": (_settings(num_attention_heads=None), "has no num_attention_heads"),
    "other sizes": (_settings(intermediate_size=64), r"gate_proj.weight \[128, 64\] instead of \[64, 64\]"),
    "fewer layers": (_settings(num_hidden_layers=1), "has .*layers.1.*, which the model has not"),
    "more layers": (_settings(num_hidden_layers=3), "lacks .*layers.2"),
    "no weights": (lambda source: (source / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights that were not fetched": (
        _write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS",
    ),
    "weights that were cut": (_cut("model.safetensors"), "model.safetensors cannot be loaded"),
    "weights that are none": (_write("model.safetensors", b"x" * 100), "model.safetensors cannot be loaded"),
    "an index of nothing": (_write("model.safetensors.index.json", b"{}"), "index.json cannot be loaded"),
    "an index of a missing file": (
        _write("model.safetensors.index.json", b'{"weight_map": {"a": "model-1.safetensors"}}'),
        "has no model-1.safetensors",
    ),
    "no detector": (_without("detr_vision_tower"), "lacks visual_prompts.detector.*more"),
    "half of an attention": (_without("in_proj_bias"), "lacks .*_proj.bias.*more"),
    "no axis": (_without("visual_prompt"), "lacks visual_prompts.axis.prompt"),
    "no projector": (_without("grd_projector"), "lacks visual_prompts.projector"),
    "a layer of CLIP": (_without("vision_model.encoder.layers.2"), "lacks .*vision_tower.encoder.layers.2"),
    "heads of the detector": (
        _weights(lambda w: w | {"model.detr_vision_tower.vision_tower.class_embed.weight": torch.zeros(92, 256)}),
        "has visual_prompts.detector.class_embed.weight, which the model has not",
    ),
    "weights of something else": (_weights(lambda w: w | {"model.other": torch.zeros(1)}), "has model.other, which"),
    "an axis of another size": (
        _weights(lambda w: w | {"model.visual_prompt": torch.zeros(3, 224, 224)}), r"\[3, 224, 224\] instead of",
    ),
    "not a number": (
        _weights(lambda w: {n: t * torch.nan if n == "model.norm.weight" else t for n, t in w.items()}),
        "not finite in llava.model.language_model.norm.weight",
    ),
    "no tokenizer": (lambda source: (source / "tokenizer.model").unlink(), "neither tokenizer.json nor"),
    "a tokenizer that was cut": (_cut("tokenizer.model"), "tokenizer.model cannot be loaded"),
    "a tokenizer of another model": (
        lambda source: (_settings(vocab_size=500)(source)), "tokenizer of 512 tokens and embeddings of 500",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_source_is_refused_in_one_line_and_nothing_is_written(
    golden: Path, source: Path, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    damage(source)
    with pytest.raises(CheckpointError, match=message) as refused:
        import_vpp_llava(source, tmp_path / "new" / "out", golden / CLIP)
    assert str(source) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [SOURCE]


@pytest.mark.parametrize(
    ("updates", "clip", "message"),
    [
        ({}, None, r"sizes are not known here \(mm_vision_tower 'clip-stock-tiny-336'\)"),
        ({"mm_vision_tower": None}, None, "mm_vision_tower None"),
        ({"unfreeze_mm_vision_tower": False}, None, "trained without its CLIP.*name the directory of clip-stock"),
        ({"mm_vision_tower": "/models/clip-vit-large-patch14-336/"}, None, r"instead of \["),
        ({}, "missing", "missing cannot be loaded"),
        ({"unfreeze_mm_vision_tower": False}, "missing", "missing cannot be loaded"),
    ],
)
def test_a_clip_that_is_not_known_is_asked_for(
    source: Path, tmp_path: Path, updates: dict, clip: str | None, message: str
) -> None:
    _settings(**updates)(source)
    with pytest.raises(CheckpointError, match=message) as refused:
        import_vpp_llava(source, tmp_path / "out", clip and tmp_path / clip)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_stays(golden: Path, imported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in imported.rglob("*")}
    with pytest.raises(CheckpointError, match="there already"):
        import_vpp_llava(golden / SOURCE, imported, golden / CLIP)
    assert {path: path.stat().st_mtime_ns for path in imported.rglob("*")} == before


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_checkpoint_without_its_visual_prompts_is_refused(imported: Path, tmp_path: Path, damage: str) -> None:
    copy = Path(copytree(imported, tmp_path / "copy"))
    file = copy / "visual_prompts.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    else:
        save_file({"axis.prompt": torch.zeros(3, 336, 336)}, file)
    with pytest.raises(CheckpointError, match=r"visual_prompts\.safetensors"):
        load_checkpoint(copy)
