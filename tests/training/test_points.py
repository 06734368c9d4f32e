"""Training to point: rows of a prompt and its answer, and whole runs on a tiny PaliGemma-2."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, normalizers
from transformers import Gemma2Config, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from referent.core.grammar import PointGrammar
from referent.core.prompts import PromptEncoder
from referent.data.records import Record, write_records
from referent.modeling.checkpoint import (
    CheckpointError,
    CheckpointSpec,
    load_checkpoint,
    load_checkpoint_encoder,
    load_checkpoint_spec,
)
from referent.modeling.grounder import TextGrounder, load_grounder
from referent.modeling.importers.paligemma import POINT_TEMPLATE, import_paligemma, import_point_vlm, paligemma_spec
from referent.training.bases import open_paligemma
from referent.training.encoding import collate_answers
from referent.training.losses import LossWeights, Objective
from referent.training.modes import parameter_groups, select_trained
from referent.training.point_stream import QUESTIONS, PointStream
from referent.training.recipe import Recipe, RecipeError
from referent.training.record_stream import DataError, load_records, order_of
from referent.training.train import train
from tests.support.text_tokenizer import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, TEXT_VOCABULARY, write_text_tokenizer

SIZE = (40, 30)
MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as transformers writes it; 4 image tokens of 28 x 28 pixels."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        vision_use_head=False, projection_dim=64,
    )  # fmt: skip
    text = Gemma2Config(
        vocab_size=TEXT_VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, pad_token_id=PAD_ID, bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_ID, projection_dim=64, hidden_size=64
    )
    directory = tmp_path_factory.mktemp("paligemma")
    paligemma = PaliGemmaForConditionalGeneration(config)
    for name, parameter in paligemma.named_parameters():  # the default is too small to tell inputs, and tokens, apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 if "embed_tokens" in name else parameter.shape[-1] ** -0.5)
    paligemma.save_pretrained(directory)
    file = str(directory / "tokenizer.json")
    write_text_tokenizer(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # Gemma's puts no space before a text
    tokenizer.save(file)
    return directory


@pytest.fixture(scope="session")
def pointed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and val.jsonl: red squares on blue, one or two, and something absent."""
    folder = tmp_path_factory.mktemp("pointed")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        records = []
        for index in range(count):
            pixels = np.full((SIZE[1], SIZE[0], 3), (0, 0, 255), np.uint8)
            points = []
            for _ in range(1 + index % 2):
                x, y = (int(v) for v in rng.integers(5, 25, 2))
                pixels[y - 4 : y + 5, x - 4 : x + 5] = (255, 0, 0)
                points.append((float(x), float(y)))
            name = f"{split}-{index}.png"
            Image.fromarray(pixels).save(folder / name)
            for label, where in (("red cup", tuple(points)), ("the plate", None)):
                records.append(
                    Record(id=f"{name}/{label}", image=name, width=SIZE[0], height=SIZE[1], expression=label,
                           points=where, split=split)
                )  # fmt: skip
        write_records(folder / f"{split}.jsonl", records)
    return folder


@pytest.fixture
def make_recipe(paligemma: Path, pointed: Path, tmp_path: Path) -> MakeRecipe:
    def make(**settings: Any) -> Recipe:
        given = {"base": paligemma, "data": pointed, "images": pointed, "out": tmp_path / "run", "steps": 2}
        quick = {"batch": 2, "workers": 0, "logging_steps": 1, "learning_rate": 1e-2}
        return Recipe(mode="points", **given | quick | settings)

    return make


@pytest.fixture
def opened(paligemma: Path) -> tuple[CheckpointSpec, PromptEncoder]:
    spec = paligemma_spec(paligemma, PointGrammar(none=True), POINT_TEMPLATE)
    return spec, load_checkpoint_encoder(paligemma, spec)


def stream_of(opened: tuple[CheckpointSpec, PromptEncoder], folder: Path, seed: int = 0) -> PointStream:
    records = load_records(folder / "train.jsonl", folder, gives="points")
    return PointStream(records, folder, *opened, seed, EOS_ID)


def test_a_row_is_a_prompt_and_its_answer(opened: tuple[CheckpointSpec, PromptEncoder], pointed: Path) -> None:
    """Which says where the record's points are, in shares of the image, or that nothing is there."""
    encoder, stream = opened[1], stream_of(opened, pointed)
    counts = set()
    for index, item in enumerate(order_of(0, 0, len(stream))):
        row, record = stream[index], stream.items[item]
        prompt, answer = (row["input_ids"][row["segment_ids"] == segment].tolist() for segment in (0, 1))
        assert prompt[: len(encoder.prefix)] == encoder.prefix
        assert row["labels"].tolist() == [*answer, EOS_ID]
        assert row["loc_positions"].tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer)))
        text = encoder.decode(answer)
        points = [written.values for written in PointGrammar(none=True).read(text)]
        assert (text == "none") == (record.points is None)
        np.testing.assert_allclose(np.array(points).reshape(-1, 2) * SIZE, record.points or np.empty((0, 2)), atol=5e-3)
        assert row["image"].shape == (28, 28, 3)
        counts.add(len(points))
    assert counts == {0, 1, 2}


def test_half_of_the_prompts_are_as_served_and_the_others_vary(
    opened: tuple[CheckpointSpec, PromptEncoder], pointed: Path
) -> None:
    encoder, stream = opened[1], stream_of(opened, pointed)
    stream.samples = 600
    served = other = 0
    prompts = set()
    for index in range(600):
        row = stream[index]
        prompt = tuple(row["input_ids"][row["segment_ids"] == 0].tolist())
        prompts.add(prompt)
        if prompt in {tuple(encoder.prefix + encoder.suffix(label)) for label in ("red cup", "the plate")}:
            served += 1
        else:
            other += 1
    assert 240 < served < 360
    assert len(prompts) == 2 * (len(QUESTIONS) + 1)


def test_samples_depend_on_seed_and_number_alone(opened: tuple[CheckpointSpec, PromptEncoder], pointed: Path) -> None:
    one, again, other = (stream_of(opened, pointed, seed) for seed in (0, 0, 1))
    one.samples = again.samples = other.samples = 40
    same = [np.array_equal(one[k]["input_ids"], again[k]["input_ids"]) for k in reversed(range(40))]
    assert all(same)
    assert any(not np.array_equal(one[k]["input_ids"], other[k]["input_ids"]) for k in range(40))


def test_padding_changes_no_loss(
    make_recipe: MakeRecipe, opened: tuple[CheckpointSpec, PromptEncoder], pointed: Path
) -> None:
    model, _ = open_paligemma(make_recipe())
    objective = Objective(model, LossWeights()).eval()
    stream = stream_of(opened, pointed)
    rows = [stream[index] for index in range(4)]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    with torch.inference_mode():
        single = [(len(row["labels"]), objective(**collate_answers([row]))["loss"]) for row in rows]
        together = objective(**collate_answers(rows))["loss"]
    expected = sum(count * loss for count, loss in single) / sum(count for count, _ in single)
    torch.testing.assert_close(together, expected)


def test_a_step_changes_the_adapter_of_all_projections_and_nothing_else(make_recipe: MakeRecipe, pointed: Path) -> None:
    recipe = make_recipe(lora_dropout=0.1)
    model, spec = open_paligemma(recipe)
    encoder = load_checkpoint_encoder(recipe.out, spec)
    select_trained(model, spec, encoder, recipe)
    objective = Objective(model, LossWeights())
    stream = stream_of((spec, encoder), pointed)
    batch = collate_answers([stream[0], stream[1], stream[2]])
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe))
    for _ in range(2):
        optimizer.zero_grad()
        objective.train()(**batch)["loss"].backward()
        optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in model.named_parameters() if value.requires_grad}
    assert len(changed) == 2 * 7 * 2
    assert all("lora_" in name and "language_model" in name for name in changed)


@pytest.mark.parametrize(
    ("given", "adapter"),
    [({}, (8, 8, 0.1)), ({"lora_rank": 16, "lora_alpha": 32}, (16, 32, 0.1)), ({"lora_dropout": 0.0}, (8, 8, 0.0))],
)
def test_the_adapter_is_point_vlms_unless_told_otherwise(
    make_recipe: MakeRecipe, given: dict, adapter: tuple[int, int, float]
) -> None:
    recipe = make_recipe(**given)
    model, spec = open_paligemma(recipe)
    select_trained(model, spec, load_checkpoint_encoder(recipe.out, spec), recipe)
    config = model.llava.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == adapter
    assert tuple(recipe.settings()[f"lora_{name}"] for name in ("rank", "alpha", "dropout")) == adapter


def test_checkpointed_layers_give_the_same_gradients(make_recipe: MakeRecipe, pointed: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        recipe = make_recipe(lora_dropout=0.0)
        torch.manual_seed(0)
        model, spec = open_paligemma(recipe)
        encoder = load_checkpoint_encoder(recipe.out, spec)
        select_trained(model, spec, encoder, recipe)
        model.checkpointing = checkpointing
        stream = stream_of((spec, encoder), pointed)
        Objective(model, LossWeights())(**collate_answers([stream[0], stream[1]]))["loss"].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_run_learns_to_point_and_to_say_none(make_recipe: MakeRecipe, pointed: Path) -> None:
    recipe = make_recipe(steps=40, batch=6, logging_steps=5, eval_steps=40, lora_alpha=64, learning_rate=2e-2)
    figures = train(recipe)
    assert set(figures) >= {"f1", "recall", "success", "parse_rate", "n"}
    lines = json.loads((recipe.out / "checkpoint-40" / "trainer_state.json").read_text())["log_history"]
    losses = [line["text"] for line in lines if "text" in line]
    assert losses[-1] < 0.2 * losses[0]
    spec = load_checkpoint_spec(recipe.out / "best")
    assert spec.generation.grammar == PointGrammar(none=True)
    assert spec.prompt.template == POINT_TEMPLATE
    assert json.loads((recipe.out / "result.json").read_text())["f1"] == figures["f1"]
    grounder = load_grounder(recipe.out / "best", "cpu")
    assert isinstance(grounder, TextGrounder)
    answers = grounder.ground(Image.open(pointed / "train-0.png"), ["red cup", "the plate"])
    assert [answer.finish_reason for answer in answers] == ["stop", "stop"]
    assert [answer.present for answer in answers] == [True, False]
    assert answers[0].point_xy is not None


def test_a_resumed_run_ends_as_an_uninterrupted_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """At one learning rate throughout: a run of fewer steps has another cosine."""
    whole = make_recipe(steps=4, save_steps=2, eval_steps=4, lora_dropout=0.0, min_learning_rate=1e-2)
    train(whole)
    parted = replace(whole, out=tmp_path / "parted")
    train(replace(parted, steps=2))
    train(parted)
    assert json.loads((parted.out / "result.json").read_text())["steps"] == 4
    first, second = (load_file(run.out / "last" / "adapter" / "adapter_model.safetensors") for run in (whole, parted))
    torch.testing.assert_close(first, second)


def test_what_was_trained_can_be_imported_as_an_adapter(
    make_recipe: MakeRecipe, paligemma: Path, tmp_path: Path
) -> None:
    recipe = make_recipe()
    train(recipe)
    import_point_vlm(recipe.out / "best" / "adapter", paligemma, tmp_path / "imported")
    load_checkpoint(tmp_path / "imported")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": True}, "--compile is not for points"),
        ({"center_crop": True}, "--center-crop is not for points"),
        ({"plain_text_loc": True}, "--plain-text-loc"),
        ({"template": "vg"}, "--template 'vg': .*must hold <image>"),
        ({"template": "{expression} in <image>"}, "--template .*<image> before"),
        ({"template": "<image>{expression}[LOC]"}, "--template .*ends with .LOC., and points are written"),
    ],
)
def test_settings_that_do_not_go_with_points_are_refused(make_recipe: MakeRecipe, settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        open_paligemma(make_recipe(**settings))


@pytest.mark.skipif(is_bitsandbytes_available(), reason="this machine can")
def test_four_bits_need_their_library(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="pip install bitsandbytes, or leave --four-bits out"):
        open_paligemma(make_recipe(four_bits=True))


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
def test_a_base_in_four_bits_is_trained_and_referred_to_as_it_is(make_recipe: MakeRecipe, paligemma: Path) -> None:
    recipe = make_recipe(four_bits=True)
    train(recipe)
    model, spec = load_checkpoint(recipe.out / "best")
    assert Path(spec.base) == paligemma.resolve()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_base_of_another_family_is_refused(make_recipe: MakeRecipe, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no PaliGemma"):
        open_paligemma(make_recipe(base=tiny_checkpoint / "base"))
    with pytest.raises(RecipeError, match="not a base"):
        open_paligemma(make_recipe(base=tmp_path))


def test_a_checkpoint_on_a_paligemma_is_a_base(make_recipe: MakeRecipe, paligemma: Path, tmp_path: Path) -> None:
    import_paligemma(paligemma, tmp_path / "imported")
    _, spec = open_paligemma(make_recipe(base=tmp_path / "imported"))
    assert Path(spec.base) == paligemma.resolve()


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (((1, 1), (float("nan"), 1)), "point is not a number"),
        (((float("inf"), 1),), "point is not a number"),
        (((4000, 1),), "point outside the image"),
        (((-50, 1),), "point outside the image"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_points_that_are_nowhere_are_refused(
    make_recipe: MakeRecipe, pointed: Path, tmp_path: Path, points: tuple, reason: str, split: str
) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_bytes((pointed / f"{name}.jsonl").read_bytes())
    row = {"id": "odd", "image": f"{split}-0.png", "width": 40, "height": 30, "expression": "cup", "points": points}
    with (tmp_path / f"{split}.jsonl").open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"'odd' of .*{split}.jsonl: {reason}|{split}.jsonl:\\d+: "):
        train(make_recipe(data=tmp_path))


def test_records_with_too_many_points_are_left_out_and_counted(
    opened: tuple[CheckpointSpec, PromptEncoder], pointed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = load_records(pointed / "train.jsonl", pointed, gives="points")
    crowd = records[0].model_copy(update={"id": "crowd", "points": ((1, 1),) * 65})
    assert len(PointStream([*records, crowd], pointed, *opened, 0, EOS_ID)) == len(records)
    assert "1 records with over 64 points" in caplog.text


def test_a_run_of_another_rank_is_not_resumed(make_recipe: MakeRecipe) -> None:
    train(make_recipe(steps=2, save_steps=1))
    with pytest.raises(RuntimeError, match=r"does not fit this model.*resume with the settings"):
        train(make_recipe(steps=4, save_steps=1, lora_rank=4))


@pytest.mark.parametrize("fault", ["boxes", "nothing to point to", "nothing to judge by"])
def test_records_that_cannot_be_trained_on_are_refused(
    make_recipe: MakeRecipe, pointed: Path, tmp_path: Path, fault: str
) -> None:
    fields = {"image": "train-0.png", "width": 40, "height": 30, "expression": "cup"}
    rows = {
        "boxes": {"train": Record(id="1", box_xyxy=(1, 1, 9, 9), **fields)},
        "nothing to point to": {"train": Record(id="1", **fields)},
        "nothing to judge by": {"val": Record(id="1", **fields)},
    }[fault]
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_bytes((pointed / f"{split}.jsonl").read_bytes())
    for split, record in rows.items():
        write_records(tmp_path / f"{split}.jsonl", [record])
    with pytest.raises(DataError, match={"boxes": "has a box and no points"}.get(fault, "points")):
        train(make_recipe(data=tmp_path))
