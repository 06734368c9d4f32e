"""LLaVA-1.5 as it is published, against the answers of visual-grounding-api's baseline (golden/vg)."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from referent.core.grammar import BoxGrammar
from referent.kinds.generator import generation_of
from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint, load_checkpoint_encoder
from referent.modeling.grounder import load_grounder
from referent.modeling.llava import TEMPLATES
from referent.modeling.text_decoder import TorchDecoder
from tests.support.commands import run
from tests.support.recorded import assert_as_recorded

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "vg"


@pytest.fixture(scope="module")
def base(golden: Path) -> Path:
    return golden / "base-llava-1.5-tiny-hf"


@pytest.fixture(scope="module")
def cases(golden: Path) -> list[dict]:
    return json.loads((golden / "constrained.json").read_text())["cases"]


@pytest.fixture(scope="module")
def imported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "baseline"
    code, output, errors = run("import", "llava", base, "--out", out)
    assert code == 0, errors
    assert "always gives a box" in output
    assert f"referent export {out} --name NAME" in "".join(output.splitlines())
    return out


def check(checkpoint: Path, spec: CheckpointSpec, golden: Path, cases: list[dict], probes: bool) -> None:
    """As recorded, with the spec's own preprocessing, prompt and grammar."""
    model, encoder = load_checkpoint(checkpoint)[0], load_checkpoint_encoder(checkpoint, spec)
    features = []
    for case in cases:
        square = spec.image.apply(Image.open(golden / case["image"]).convert("RGB"))
        features.append(model.encode_image(torch.from_numpy(square[None])).detach())
    decoder = TorchDecoder(model, slots=max(8, len(cases)), columns=1024)
    assert_as_recorded(decoder, spec, encoder, features, cases, probes)


def test_an_imported_llava_writes_what_the_baselines_own_code_does(
    imported: Path, golden: Path, cases: list[dict]
) -> None:
    check(imported, load_checkpoint(imported)[1], golden, cases, probes=True)


MISTAKES: dict[str, Callable[[CheckpointSpec], dict]] = {
    "padded to a square": lambda spec: {"image": spec.image.model_copy(update={"mode": "letterbox"})},
    "stretched": lambda spec: {"image": spec.image.model_copy(update={"mode": "stretch"})},
    "the head's prompt": lambda spec: {
        "prompt": spec.prompt.model_copy(update={"template": TEMPLATES["vg"].removesuffix(" [LOC]")})
    },
    "no space before the answer": lambda spec: {
        "generation": generation_of(spec).model_copy(update={"grammar": BoxGrammar(order="cxcywh")})
    },
    "three decimals": lambda spec: {
        "generation": generation_of(spec).model_copy(
            update={"grammar": BoxGrammar(order="cxcywh", decimals=3, lead=" ")}
        )
    },
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(imported: Path, golden: Path, cases: list[dict], mistake: str) -> None:
    spec = load_checkpoint(imported)[1]
    wrong = spec.model_copy(update=MISTAKES[mistake](spec))
    with pytest.raises(AssertionError):
        check(imported, wrong, golden, cases[:1], probes=False)


def test_its_answers_are_boxes_of_the_whole_image(imported: Path, golden: Path, cases: list[dict]) -> None:
    grounder = load_grounder(imported, device="cpu")
    for image in ("landscape.png", "portrait.png"):
        asked = [case for case in cases if case["image"] == image]
        answers = grounder.ground(Image.open(golden / image).convert("RGB"), [case["expression"] for case in asked])
        for case, answer in zip(asked, answers, strict=True):
            wanted = case["answer"]
            assert (answer.text, answer.finish_reason, answer.present) == (wanted["text"], "stop", True)
            assert answer.score == pytest.approx(wanted["pil_pixels"]["score"], rel=1e-4)
            assert answer.box_xyxy == pytest.approx(wanted["found"][0]["box_px"], abs=1e-3)


def test_the_checkpoint_refers_to_its_base(imported: Path, base: Path) -> None:
    spec = load_checkpoint(imported)[1]
    assert {path.name for path in imported.iterdir()} == {"referent.json", "tokenizer.json"}
    assert (spec.kind, spec.image.mode, spec.box_frame, spec.adapter) == ("generator", "center_crop", "image", False)
    assert (spec.base, spec.training) == (str(base), {"imported": "llava", "base": base.name})


def _config(**fields: object) -> Damage:
    """Fields of config.json, those of its parts by `part__field`; None removes one."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in fields.items():
            part, _, field = name.rpartition("__")
            place = config[part] if part else config
            place.pop(field, None)
            if value is not None:
                place[field] = value
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def _tokens(vocabulary: list[str]) -> Damage:
    """Another tokenizer, of these tokens behind the special ones."""

    def damage(folder: Path) -> None:
        words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *vocabulary]
        tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
        tokenizer.save(str(folder / "tokenizer.json"))

    return damage


def _original_weights(folder: Path) -> None:
    """The names of LLaVA's own code, which leaves the vision tower out."""
    weights = load_file(folder / "model.safetensors")
    own = {
        name.removeprefix("language_model.").replace("multi_modal_projector.linear_1", "model.mm_projector.0"): tensor
        for name, tensor in weights.items()
        if not name.startswith("vision_tower")
    }
    assert {"model.embed_tokens.weight", "model.mm_projector.0.weight"} <= own.keys()
    save_file(own, folder / "model.safetensors", {"format": "pt"})


def _original(folder: Path) -> None:
    _original_weights(folder)
    _config(
        architectures=["LlavaLlamaForCausalLM"], vision_config=None, text_config=None, vocab_size=576, hidden_size=64,
        mm_vision_tower="openai/clip-vit-large-patch14-336",
    )(folder)  # fmt: skip
    (folder / "tokenizer.json").unlink()


def _original_of_its_own_type(folder: Path) -> None:
    _original(folder)
    _config(model_type="llava_llama")(folder)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "the original layout": (_original, "LlavaLlamaForCausalLM'.: take an edition of LLaVA-1.5 whose name ends in -hf"),
    "the original layout, its own type": (_original_of_its_own_type, "LlavaLlamaForCausalLM'.: take an edition of"),
    "the original weights": (_original_weights, "lacks .*has .*which the model has not"),
    "LLaVA-NeXT": (
        _config(model_type="llava_next", architectures=["LlavaNextForConditionalGeneration"]),
        "LlavaNextForConditionalGeneration.*LLaVA-1.5",
    ),
    "another language model": (_config(text_config__model_type="qwen2"), "made of qwen2 and clip_vision_model"),
    "another vision tower": (_config(vision_config__model_type="siglip_vision_model"), "made of llama and siglip"),
    "another projector": (_config(vision_feature_select_strategy=None, projector_hidden_act="none"), "cannot be load"),
    "a tokenizer of more tokens": (
        _tokens([f"w{i}" for i in range(600)]),
        "tokenizer.json numbers tokens up to 6.*the model has 576: it is of another model",
    ),
    "a tokenizer without digits": (_tokens(["[", "]", ",", "▁"]), "has not LLaVA's tokenizer"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    "several end tokens": (_config(text_config__eos_token_id=[2, 3]), "has eos_token_id .2, 3. in its text_config"),
    "no end token": (_config(text_config__eos_token_id="</s>"), "eos_token_id"),
    "several first tokens": (_config(text_config__bos_token_id=[1, 2]), "bos_token_id"),
    "in four bits": (
        _config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "cannot be loaded"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_whole_llava_is_refused_in_one_line(base: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    copytree(base, tmp_path / "base")
    damage(tmp_path / "base")
    before = sorted(tmp_path.rglob("*"))
    code, output, errors = run("import", "llava", tmp_path / "base", "--out", tmp_path / "new" / "out")
    assert code == 1
    told = [line for line in (output + errors).splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert str(tmp_path / "base") in told[0]
    assert re.search(message, told[0]), told[0]
    assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before
