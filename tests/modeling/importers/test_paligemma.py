"""PaliGemma-2 and point-vlm's adapter against the outputs of their own code (golden/pv of the published data)."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from export.build import export
from referent.core.grammar import DetectionGrammar, Generation, PointGrammar
from referent.core.prompts import PromptEncoder
from referent.core.transform import ImageTransform
from referent.generation.engine import DecoderRow, Engine, WrittenAnswer
from referent.generation.questions import load_tokenizer
from referent.modeling.checkpoint import (
    CheckpointError,
    CheckpointSpec,
    load_checkpoint,
    load_checkpoint_encoder,
)
from referent.modeling.grounder import load_grounder, make_grounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.importers.paligemma import import_paligemma, import_point_vlm
from referent.modeling.text_decoder import TextDecoder, TorchDecoder
from referent.modeling.weights import load_adapter, load_paligemma
from referent.training.losses import answer_loss

TOLERANCE = 1e-4
BASE, ADAPTER = "paligemma2-tiny-pt-224", "point-vlm-tiny"
Arrays = Mapping[str, np.ndarray]
Model = tuple[GroundingModel, CheckpointSpec, PromptEncoder]


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "pv"


@pytest.fixture(scope="module")
def arrays(golden: Path) -> Arrays:
    return dict(np.load(golden / "golden.npz"))


@pytest.fixture(scope="module")
def cases(golden: Path) -> list[dict]:
    return json.loads((golden / "golden.json").read_text())["cases"]


@pytest.fixture(scope="module")
def constrained(golden: Path) -> dict:
    return json.loads((golden / "constrained.json").read_text())


@pytest.fixture(scope="module")
def imported(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint that points, and one that detects."""
    folder = tmp_path_factory.mktemp("imported")
    import_point_vlm(golden / ADAPTER, golden / BASE, folder / "points")
    import_paligemma(golden / BASE, folder / "detections")
    return {name: folder / name for name in ("points", "detections")}


@pytest.fixture
def pointing(imported: dict[str, Path]) -> Model:
    return opened(imported["points"])


def opened(checkpoint: Path) -> Model:
    model, spec = load_checkpoint(checkpoint)
    return model, spec, load_checkpoint_encoder(checkpoint, spec)


def square(golden: Path, spec: CheckpointSpec, name: str) -> torch.Tensor:
    return torch.from_numpy(spec.image.apply(Image.open(golden / name).convert("RGB"))[None])


@torch.inference_mode()
def logits(model: GroundingModel, ids: list[int], features: torch.Tensor, prompt: int, first: int = 0) -> torch.Tensor:
    """(T, V) of a row whose first `prompt` tokens see each other, the rest what is before them; from token `first` on
    in passes of one token over the keys and values of what is before it."""
    decoder, total = TextDecoder(model), len(ids)
    mask = torch.ones(total, total).tril().bool()
    mask[:prompt, :prompt] = True
    text = model.base.config.text_config
    past = [torch.zeros(1, text.num_key_value_heads, 0, text.head_dim)] * (2 * text.num_hidden_layers)
    found = []
    for start, stop in [(0, first or total), *((place, place + 1) for place in range(first or total, total))]:
        row = torch.tensor([ids[start:stop]]), features, torch.arange(start, stop)[None], mask[None, start:stop, :stop]
        hidden, new = decoder.hidden_states(*row, *past)
        past = [torch.cat(pair, 2) for pair in zip(past, new, strict=True)]
        found.append(decoder.logits(hidden)[0])
    return torch.cat(found)


def check(model: Model, golden: Path, arrays: Arrays, case: dict) -> None:
    """The prompt's ids, and the logits of its last tokens."""
    encoder = model[2]
    ids = encoder.prefix + encoder.suffix(case["label"])
    assert ids == arrays[f"{case['i']}.input_ids"][0].tolist()
    check_logits(model, golden, arrays, case, ids, len(ids))


def check_logits(
    model: Model, golden: Path, arrays: Arrays, case: dict, ids: list[int], prompt: int, scale: float = 1
) -> None:
    network, spec, _ = model
    features = network.encode_image(square(golden, spec, case["image"])) * scale
    found = logits(network, ids, features.detach(), prompt).numpy()
    i = case["i"]
    close(found[-16:], arrays[f"{i}.prefill_logits_last16"][0])
    close(torch.from_numpy(found).logsumexp(-1).numpy(), arrays[f"{i}.prefill_logits_logsumexp"][0])
    assert (found.argmax(-1) == arrays[f"{i}.prefill_logits_argmax"][0]).all()


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_ids_and_logits_are_those_of_its_own_code(
    pointing: Model, golden: Path, arrays: Arrays, cases: list[dict]
) -> None:
    for case in cases:
        check(pointing, golden, arrays, case)


def test_pixels_and_features_are_those_of_its_own_code(
    pointing: Model, golden: Path, arrays: Arrays, cases: list[dict]
) -> None:
    model, spec, _ = pointing
    width = model.base.config.text_config.hidden_size
    for case in cases:
        image = square(golden, spec, case["image"])
        np.testing.assert_allclose(model.normalise(image), arrays[f"{case['i']}.pixel_values"], atol=1e-6, rtol=0)
        expected = arrays[f"{case['i']}.image_features_scaled"]
        features = model.encode_image(image).detach()[:, :: 256 // expected.shape[1]]
        close(features / width**0.5, expected)


def test_tokens_written_freely_are_those_of_its_own_code(
    pointing: Model, golden: Path, arrays: Arrays, cases: list[dict]
) -> None:
    model, spec, encoder = pointing
    for case in cases:
        prompt = encoder.prefix + encoder.suffix(case["label"])
        features = model.encode_image(square(golden, spec, case["image"])).detach()
        written = arrays[f"{case['i']}.greedy_ids"][0].tolist()
        found = logits(model, [*prompt, *written[:-1]], features, len(prompt), first=len(prompt))[len(prompt) - 1 :]
        assert found.argmax(-1).tolist() == written
        close(found, arrays[f"{case['i']}.step_logits"])


def training_row(case: dict, encoder: PromptEncoder) -> tuple[list[int], list[int]]:
    """A prompt's ids and its answer's, as the project's own collator has them: without an end token."""
    question, answer = case["train_prefix"].removeprefix("<bos>").split("\n")
    template = f"<image>{question.replace(case['label'], '{expression}')}\n"
    own = PromptEncoder(
        encoder.prompt.model_copy(update={"template": template}), Path(case["tokenizer"]), len(encoder.prefix)
    )
    return own.prefix + own.suffix(case["label"]), own.answer(answer)


def test_training_sees_what_its_own_collator_and_model_see(
    pointing: Model, golden: Path, arrays: Arrays, cases: list[dict]
) -> None:
    model, spec, encoder = pointing
    for case in cases:
        given = {key: arrays[f"{case['i']}.train.{key}"][0] for key in ("input_ids", "token_type_ids", "labels")}
        prompt, answer = training_row(case | {"tokenizer": golden / BASE / "tokenizer.json"}, encoder)
        assert prompt + answer == given["input_ids"].tolist()
        assert [0] * len(prompt) + [1] * len(answer) == given["token_type_ids"].tolist()
        assert [-100] * len(prompt) + answer == given["labels"].tolist()
        features = model.encode_image(square(golden, spec, case["image"])).detach()
        found = logits(model, prompt + answer, features, len(prompt))
        close(found[-48:], arrays[f"{case['i']}.train.logits_last48"][0])
        ids, segments = torch.tensor([prompt + answer]), torch.tensor(given["token_type_ids"][None])
        positions = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)[None]
        with torch.inference_mode():
            hidden, _ = model.read_expressions(ids, segments, positions, features)
            loss = answer_loss(model, hidden, torch.tensor([answer]))
        close(loss, arrays[f"{case['i']}.train.loss"])


def test_points_as_they_are_trained_read_back(cases: list[dict]) -> None:
    grammar = PointGrammar()
    for case in cases:
        answer = case["train_prefix"].split("\n")[1]
        points = [written.values for written in grammar.read(answer)]
        assert len(points) == case["i"] % 2 + 1
        assert grammar.write(points, case["label"]) == answer


def _without_adapter(model: GroundingModel) -> None:
    model.llava = model.llava.unload()


def _rank_as_alpha_of_16(model: GroundingModel) -> None:
    for module in model.llava.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling["default"] = 2.0


def _without_caps_of_attention(model: GroundingModel) -> None:
    for layer in model.base.model.language_model.layers:
        layer.self_attn.attn_logit_softcapping = None


def _without_cap_of_logits(model: GroundingModel) -> None:
    model.base.config.text_config.final_logit_softcapping = None


def _norms_of_llama(model: GroundingModel) -> None:
    for layer in model.base.model.language_model.layers:
        layer.post_feedforward_layernorm = nn.Identity()


def _rounded(model: GroundingModel) -> None:
    model.llava.bfloat16().float()


@pytest.mark.parametrize(
    "mistake",
    [
        _without_adapter,
        _rank_as_alpha_of_16,
        _without_caps_of_attention,
        _without_cap_of_logits,
        _norms_of_llama,
        _rounded,
    ],
)
def test_mistakes_in_the_model_are_seen(
    imported: dict[str, Path],
    golden: Path,
    arrays: Arrays,
    cases: list[dict],
    mistake: Callable[[GroundingModel], None],
) -> None:
    model = opened(imported["points"])
    mistake(model[0])
    for case in cases:
        with pytest.raises(AssertionError):
            check(model, golden, arrays, case)


class _Bilinear(ImageTransform):
    def apply(self, image: Any) -> np.ndarray:
        return np.array(image.resize((self.size, self.size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    "image",
    [ImageTransform(mode="letterbox", size=224), ImageTransform(mode="center_crop", size=224), _Bilinear(size=224)],
    ids=["padded", "cropped", "bilinear"],
)
def test_mistakes_in_the_picture_are_seen(
    pointing: Model, golden: Path, arrays: Arrays, cases: list[dict], image: ImageTransform
) -> None:
    model, spec, encoder = pointing
    spec = spec.model_copy(update={"image": image})
    for case in cases[: 3 if isinstance(image, _Bilinear) else 2]:  # the last picture is a square
        with pytest.raises(AssertionError):
            check((model, spec, encoder), golden, arrays, case)


def test_mistakes_in_the_row_are_seen(pointing: Model, golden: Path, arrays: Arrays, cases: list[dict]) -> None:
    for case in cases:
        ids = arrays[f"{case['i']}.input_ids"][0].tolist()
        seen = partial(check_logits, pointing, golden, arrays, case, ids)
        seen(len(ids))
        for wrong in (
            partial(seen, 0),  # causal
            partial(seen, 256),  # only the picture sees itself
            partial(seen, len(ids), scale=8),  # sqrt(D): features multiplied as text is
            partial(seen, len(ids), scale=1 / 8),
        ):
            with pytest.raises(AssertionError):
                wrong()


@pytest.mark.parametrize(
    "change",
    [
        {"template": "<image>Point to {expression}\n"},  # as in training
        {"template": "<image>\nPoint to {expression}"},
        {"bos_behind_image": False},
        {"bos_token_id": None},
    ],
    ids=["no line break before", "no line break behind", "bos before the image", "no bos"],
)
def test_mistakes_in_the_prompt_are_seen(
    pointing: Model, golden: Path, arrays: Arrays, cases: list[dict], change: dict
) -> None:
    model, spec, _ = pointing
    prompt = spec.prompt.model_copy(update=change)
    wrong = PromptEncoder(prompt, golden / BASE / "tokenizer.json", spec.image_tokens)
    for case in cases:
        with pytest.raises(AssertionError):
            check((model, spec, wrong), golden, arrays, case)


@pytest.mark.parametrize("kind", ["points", "detections"])
def test_constrained_answers_are_those_of_its_own_code(
    imported: dict[str, Path], golden: Path, constrained: dict, kind: str
) -> None:
    model, spec, encoder = opened(imported[kind])
    tokenizer = load_tokenizer(encoder.tokenizer_json, constrained["decoding"]["n_vocab"], 1)
    most = 5 if kind == "points" else 3
    grammar = PointGrammar() if kind == "points" else DetectionGrammar(first_loc_id=512)
    engine = Engine(TorchDecoder(model, slots=4, columns=512))
    expected, rows, waiting = [], [], []
    for case in constrained[kind]:
        assert encoder.suffix(case["label"]) == case["text_ids_after_image"]
        features = model.encode_image(square(golden, spec, case["image"])).detach()
        larks = {"answer": grammar.lark(case["label"], most)}
        if "probe" in case:
            larks["probe"] = case["probe"]["grammar"]
        for name, lark in larks.items():
            ids = encoder.prefix + encoder.suffix(case["label"])
            rows.append(DecoderRow(ids, features, [WrittenAnswer(tokenizer, lark, [])], bidirectional=True))
            expected.append(case[name])
    waiting = list(rows)
    while waiting or engine.active:  # one joins before each pass
        if waiting and not engine.full:
            engine.admit(waiting.pop(0))
        engine.step()
    assert not engine.errors
    for row, wanted in zip(rows, expected, strict=True):
        (answer,) = row.answers
        assert (answer.ids, answer.text, answer.finish_reason) == (wanted["ids"], wanted["text"], "stop")
        decisions = wanted["decisions"]
        assert [decision.at for decision in answer.decisions] == [decision["at"] for decision in decisions]
        close([d.logprob for d in answer.decisions], np.array([d["logprob_allowed"] for d in decisions]))
        close([d.mass for d in answer.decisions], np.array([d["mass"] for d in decisions]))
        assert answer.score() == pytest.approx(wanted["score"], rel=TOLERANCE)
        marks = grammar.read(answer.text)
        sound = [found for found in wanted["found"] if not found.get("degenerate")]
        assert [mark.span for mark in marks] == [tuple(found["span"]) for found in sound]
        for mark, found in zip(marks, sound, strict=True):
            assert answer.score(mark.span) == pytest.approx(found["score"], rel=TOLERANCE)


def test_points_are_in_pixels_of_the_image(imported: dict[str, Path], golden: Path, constrained: dict) -> None:
    model, spec, encoder = opened(imported["points"])
    generation = spec.generation.model_copy(update={"max_instances": 5})
    grounder = make_grounder(model, spec.model_copy(update={"generation": generation}), encoder)
    for case in constrained["points"]:
        (answer,) = grounder.ground(Image.open(golden / case["image"]).convert("RGB"), [case["label"]])
        assert (answer.text, answer.finish_reason) == (case["answer"]["text"], "stop")
        found = sorted(case["answer"]["found"], key=lambda point: -point["score"])
        np.testing.assert_allclose([r.point_xy for r in answer.referents], [f["point_px"] for f in found], atol=1e-3)
        np.testing.assert_allclose([r.score for r in answer.referents], [f["score"] for f in found], rtol=1e-4)
        assert answer.box_xyxy is None


def test_detections_are_in_pixels_of_the_image(imported: dict[str, Path], golden: Path, constrained: dict) -> None:
    spec = opened(imported["detections"])[1]
    grammar = spec.generation.grammar
    for case in constrained["detections"]:
        size = Image.open(golden / case["image"]).size
        for mark, found in zip(grammar.read(case["probe"]["text"]), case["probe"]["found"], strict=True):
            box = spec.frame(size).boxes_to_image(np.array(mark.values))
            np.testing.assert_allclose(box, found["box_px_unclipped"], atol=1e-3)


def test_a_checkpoint_of_a_published_model_says_when_nothing_is_there(imported: dict[str, Path], golden: Path) -> None:
    grounder = load_grounder(imported["detections"], "cpu")
    answers = grounder.ground(Image.open(golden / "landscape.png").convert("RGB"), ["red circle", "a < b & c"])
    for answer in answers:
        assert answer.finish_reason in ("stop", "length")  # random weights may want to go on
        assert answer.present == bool(answer.referents)


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


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
OF_BASE, OF_ADAPTER = f"{BASE}/model.safetensors", f"{ADAPTER}/adapter_model.safetensors"
CONFIG, TOKENIZER = f"{BASE}/config.json", f"{BASE}/tokenizer.json"
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
    assert {path.name for path in tmp_path.iterdir()} == {BASE, ADAPTER}


def test_a_tokenizer_without_places_cannot_detect(golden: Path, tmp_path: Path) -> None:
    base = tmp_path / BASE
    copytree(golden / BASE, base, copy_function=lambda a, b: Path(b).write_bytes(Path(a).read_bytes()))
    base.chmod(0o755)
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace("<loc0500>", "<place0500>"))
    with pytest.raises(CheckpointError, match="<loc0000> to <loc1023>"):
        import_paligemma(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_may_come_to_a_published_model(golden: Path, tmp_path: Path, imported: dict[str, Path]) -> None:
    import_paligemma(golden / BASE, tmp_path / "out", golden / ADAPTER)
    with_adapter, without = opened(tmp_path / "out"), opened(imported["detections"])
    assert with_adapter[1].prompt == without[1].prompt
    ids = without[2].prefix + without[2].suffix("cup")
    features = without[0].encode_image(square(golden, without[1], "square.png")).detach()
    pair = [logits(model, ids, features, len(ids)) for model, _, _ in (with_adapter, without)]
    assert not torch.allclose(*pair, atol=0.1)


def test_what_is_there_already_stays(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="there already"):
        import_paligemma(golden / BASE, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("change", [{"generation": None}, {"bidirectional": False}, {"image": 448}, {"image": 336}])
def test_a_checkpoint_on_another_base_is_refused(imported: dict[str, Path], tmp_path: Path, change: dict) -> None:
    copytree(imported["points"], tmp_path / "out")
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


def test_the_checkpoint_says_where_it_comes_from(imported: dict[str, Path]) -> None:
    spec = opened(imported["points"])[1]
    assert (spec.kind, spec.image.mode, spec.box_frame, spec.image_tokens) == ("generator", "stretch", "image", 256)
    assert spec.training["imported"] == "point-vlm"
    assert spec.training["file"]["name"] == "adapter_model.safetensors"
    assert spec.generation == Generation(grammar=PointGrammar(), eos_token_id=1, max_instances=32, bidirectional=True)
    assert opened(imported["detections"])[1].training == {"imported": "paligemma", "base": BASE}


@pytest.mark.slow
def test_two_cases_are_enough_to_export_it_with_rounded_weights(golden: Path, tmp_path: Path) -> None:
    """Its lm_head is its embedding; and a graph that is traced with a batch of one would take no other."""
    import_point_vlm(golden / ADAPTER, golden / BASE, tmp_path / "points")
    bundle, _ = export(tmp_path / "points", "points", tmp_path / "repository", weights="int4", quick_parity=True)
    assert bundle.weights == "int4"
