"""PaliGemma-2 and point-vlm's adapter against the outputs of their own code (golden/pv of the published data)."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from referent.core.grammar import DetectionGrammar, Generation, PointGrammar
from referent.core.prompts import PromptEncoder
from referent.core.transform import ImageTransform
from referent.generation.engine import DecoderRow, Engine, WrittenAnswer
from referent.generation.questions import load_tokenizer
from referent.modeling.checkpoint import (
    CheckpointSpec,
    load_checkpoint,
    load_checkpoint_encoder,
)
from referent.modeling.grounder import load_grounder, make_grounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.importers.paligemma import import_paligemma, import_point_vlm
from referent.modeling.text_decoder import TextDecoder, TorchDecoder
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


def test_an_adapter_may_come_to_a_published_model(golden: Path, tmp_path: Path, imported: dict[str, Path]) -> None:
    import_paligemma(golden / BASE, tmp_path / "out", golden / ADAPTER)
    with_adapter, without = opened(tmp_path / "out"), opened(imported["detections"])
    assert with_adapter[1].prompt == without[1].prompt
    ids = without[2].prefix + without[2].suffix("cup")
    features = without[0].encode_image(square(golden, without[1], "square.png")).detach()
    pair = [logits(model, ids, features, len(ids)) for model, _, _ in (with_adapter, without)]
    assert not torch.allclose(*pair, atol=0.1)


def test_the_checkpoint_says_where_it_comes_from(imported: dict[str, Path]) -> None:
    spec = opened(imported["points"])[1]
    assert (spec.kind, spec.image.mode, spec.box_frame, spec.image_tokens) == ("generator", "stretch", "image", 256)
    assert spec.training["imported"] == "point-vlm"
    assert spec.training["file"]["name"] == "adapter_model.safetensors"
    assert spec.generation == Generation(grammar=PointGrammar(), eos_token_id=1, max_instances=32, bidirectional=True)
    assert opened(imported["detections"])[1].training == {"imported": "paligemma", "base": BASE}
