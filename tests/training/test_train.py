"""Whole runs on a tiny base."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig, set_seed
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.import_utils import is_bitsandbytes_available

from referent.modeling.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_checkpoint_encoder,
    load_checkpoint_spec,
)
from referent.modeling.grounder import TextGrounder, load_grounder
from referent.training.bases import UNQUANTIZED, open_base
from referent.training.encoding import collate_trimmed
from referent.training.losses import LossWeights, Objective
from referent.training.modes import parameter_groups, select_trained
from referent.training.recipe import Recipe, RecipeError
from referent.training.record_stream import DataError, RecordStream, load_records
from referent.training.train import train
from tests.support.visual_prompts import save_prompted_checkpoint

MakeRecipe = Callable[..., Recipe]


def prepare(recipe: Recipe) -> tuple[Objective, dict[str, torch.Tensor]]:
    """The objective of a recipe, and one batch."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    set_seed(recipe.seed)
    model, spec = open_base(recipe)
    encoder = load_checkpoint_encoder(recipe.out, spec)
    select_trained(model, spec, encoder, recipe)
    end, grid = {"text": (2, None), "referents": (None, 2)}.get(recipe.mode, (None, None))
    records = load_records(recipe.data / "train.jsonl", recipe.images)
    stream = RecordStream(records, recipe.images, spec, encoder, recipe.row_expressions, recipe.seed, end, grid)
    return Objective(model, LossWeights()), collate_trimmed([stream[0], stream[1], stream[2]])


@pytest.mark.parametrize(
    ("mode", "trained", "untouched"),
    [
        ("frozen", {"box_head"}, {"llava"}),
        ("lora", {"lora_A", "lora_B", "trainable_tokens", "box_head"}, {"base_layer", "vision_tower", "mlp.up_proj"}),
        ("referents", {"lora_A", "lora_B", "trainable_tokens", "referent_head"}, {"base_layer", "vision_tower"}),
        ("text", {"lora_A", "lora_B", "trainable_tokens"}, {"base_layer", "vision_tower", "lm_head"}),
        ("full", {"vision_tower", "multi_modal_projector", "language_model", "box_head"}, {"lm_head"}),
    ],
)
def test_a_step_changes_what_the_mode_trains_and_nothing_else(
    make_recipe: MakeRecipe, mode: str, trained: set[str], untouched: set[str]
) -> None:
    recipe = make_recipe(mode)
    objective, batch = prepare(recipe)
    before = {name: value.clone() for name, value in objective.model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(objective.model, recipe))
    for _ in range(2):  # the first gives lora_A no gradient: lora_B starts at zero
        optimizer.zero_grad()
        objective.train()(**batch)["loss"].backward()
        optimizer.step()
    changed = {name for name, value in objective.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in objective.model.named_parameters() if value.requires_grad}
    assert all(any(part in name for name in changed) for part in trained)
    assert not any(part in name for name in changed for part in untouched if part != "llava" or mode == "frozen")


def test_full_tuning_has_a_rate_for_each_group(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("full", vision_learning_rate=2e-6, learning_rate=2e-4)
    groups = parameter_groups(prepare(recipe)[0].model, recipe)
    assert sorted(group["lr"] for group in groups) == [2e-6, 2e-5, 2e-5, 2e-4]


def test_checkpointed_layers_give_the_same_gradients(make_recipe: MakeRecipe) -> None:
    gradients = []
    for checkpointing in (False, True):
        objective, batch = prepare(make_recipe("lora", lora_dropout=0.0))
        objective.model.checkpointing = checkpointing
        objective.model.box_head.eval()  # no dropout
        objective(**batch)["loss"].backward()
        gradients.append([p.grad for p in objective.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_run_for_every_referent_leaves_thresholds_and_goes_on_from_its_own_head(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("referents", eval_steps=1)
    result = train(recipe)
    assert {"f1", "present_threshold", "referent_threshold", "calibration_error_score"} <= result.keys()
    spec = load_checkpoint_spec(recipe.out / "best")
    assert (spec.kind, spec.referent_threshold) == ("referents", result["referent_threshold"])
    image = Image.new("RGB", (40, 30), (0, 0, 255))
    (answer,) = load_grounder(recipe.out / "best", device="cpu").ground(image, ["red cup"])
    assert answer.present == bool(answer.referents)
    head = load_file(recipe.out / "best" / "head.safetensors")
    copytree(recipe.out / "best", recipe.out.parent / "next", ignore=ignore_patterns("adapter"))
    again = prepare(replace(recipe, base=recipe.out.parent / "next", out=recipe.out.parent / "again"))[0].model
    assert torch.equal(again.referent_head.query.weight, head["query.weight"])


def test_what_cannot_be_trained_for_every_referent_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("referents")
    for name in ("train", "val"):
        rows = (recipe.data / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(row for row in rows if "box_xyxy" in row))
    with pytest.raises(DataError, match="some that are not"):
        train(replace(recipe, data=tmp_path))


def test_a_lora_run_leaves_checkpoints_with_its_adapter(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("lora", fresh_head=True)
    figures = train(recipe)
    for name in ("best", "last"):
        model, spec = load_checkpoint(recipe.out / name)
        assert isinstance(model.llava, PeftModel)
        assert spec.present_threshold is not None
        assert spec.training["settings"]["lora_rank"] == 16
    assert json.loads((recipe.out / "result.json").read_text())["mean_iou"] == figures["mean_iou"]
    assert (recipe.out / "curves.png").stat().st_size > 1000
    assert list((recipe.out / "runs").rglob("events*"))


def test_a_full_run_carries_its_own_base(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("full", gradient_checkpointing=True)  # of the vision tower too
    train(recipe)
    assert (recipe.out / "best" / "base" / "config.json").is_file()
    load_grounder(recipe.out / "best").ground(Image.new("RGB", (20, 30)), ["the cup"])


def test_a_text_run_learns_to_write_boxes(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("text", steps=100, batch=5, logging_steps=10, eval_steps=100)
    objective, batch = prepare(recipe)
    untrained = objective.eval()(**batch)["loss"]
    figures = train(recipe)
    lines = json.loads((recipe.out / "checkpoint-100" / "trainer_state.json").read_text())["log_history"]
    assert [line["loss"] for line in lines if "loss" in line][-1] < 0.2 * untrained
    grounder = load_grounder(recipe.out / "best")
    assert isinstance(grounder, TextGrounder)
    found = grounder.ground(Image.open(recipe.images / "train-0.png"), ["red cup", "the cup"])
    assert all(0 < result.score <= 1 and result.text for result in found)
    assert figures["invalid"] < figures["n"]


KILLED = """
import os, signal, sys
import typer
import referent.training.train as program
from referent.commands.train import train

class Killed(program.GroundingTrainer):
    def training_step(self, *arguments, **named):
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*arguments, **named)

program.GroundingTrainer = Killed
typer.run(train)
"""


def command_line(recipe: Recipe) -> list[str]:
    options = {name: value for name, value in asdict(recipe).items() if value != getattr(Recipe, name, None)}
    mode = options.pop("mode")
    return [mode, *(part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value)))]


def losses(run: Path) -> dict[int, float]:
    lines = json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Killed after 4 of 6 steps, 1 after the last saved state, in the middle of an epoch of 2.5 steps."""
    whole = make_recipe("lora", steps=6, save_steps=3, eval_steps=3, out=tmp_path / "whole")
    killed = replace(whole, out=tmp_path / "killed")
    process = subprocess.run([sys.executable, "-c", KILLED, *command_line(killed)], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    half_written = killed.out / "checkpoint-5"  # as a kill in the middle of saving leaves it
    half_written.mkdir()
    train(whole)
    train(killed)
    assert losses(killed.out) == pytest.approx(losses(whole.out), abs=1e-6)
    assert len(losses(whole.out)) == 6
    for part in ("head.safetensors", "adapter/adapter_model.safetensors"):
        after, expected = (load_file(run.out / "last" / part) for run in (killed, whole))
        torch.testing.assert_close(after, expected, atol=1e-6, rtol=0)


TWO_PROCESSES = """
import os
import typer
from safetensors.torch import save_file
import referent.training.train as program
from referent.commands.train import train
from referent.training.trainer import trained_state

class Observed(program.GroundingTrainer):
    def train(self, *arguments, **named):
        result = super().train(*arguments, **named)
        figures = self.evaluate()
        state = trained_state(self.model) | {"mean_iou": program.torch.tensor(figures["eval_mean_iou"])}
        save_file(state, os.path.join(os.environ["STATES"], os.environ["RANK"]))
        return result

program.GroundingTrainer = Observed
typer.run(train)
"""


def test_two_processes_end_with_the_same_weights_and_figures(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("lora", steps=2, eval_steps=2)
    script = tmp_path / "run.py"
    script.write_text(TWO_PROCESSES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {"STATES": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        torchrun + command_line(recipe), capture_output=True, text=True, env=os.environ | environment
    )
    assert process.returncode == 0, process.stderr[-3000:]
    first, second = (load_file(tmp_path / rank) for rank in ("0", "1"))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    start = prepare(replace(recipe, out=tmp_path / "start"))[0].state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in first.items() if "lora_B" in name)
    assert load_checkpoint(recipe.out / "last")[1].training["step"] == 2


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"mode": "qlora"}, "use lora"),
        ({"mode": "lora", "base": Path("nowhere")}, "not a base"),
        ({"mode": "lora", "plain_text_loc": True}, "has its own"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_remedy(
    make_recipe: MakeRecipe, settings: dict[str, object], remedy: str
) -> None:
    if settings["mode"] == "qlora" and is_bitsandbytes_available():
        pytest.skip("this machine can")
    with pytest.raises(RecipeError, match=remedy):
        train(replace(make_recipe("lora"), **settings))


def test_a_base_with_visual_prompts_is_refused(make_recipe: MakeRecipe, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="visual position prompts"):
        train(make_recipe("lora", base=save_prompted_checkpoint(tmp_path / "prompted", tiny_checkpoint)))


def test_a_base_with_an_adapter_is_refused(make_recipe: MakeRecipe, tiny_checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match="has an adapter"):
        train(make_recipe("lora", base=tiny_checkpoint))


def test_the_language_models_layers_alone_are_quantized(tiny_checkpoint: Path) -> None:
    llava = load_checkpoint(tiny_checkpoint)[0].llava.unload()
    linear = {name for name, module in llava.named_modules() if isinstance(module, torch.nn.Linear)}
    quantized = {name for name in linear if should_convert_module(name, list(UNQUANTIZED))}
    assert quantized == {name for name in linear if ".language_model.layers." in name}
    assert quantized != linear


@pytest.mark.parametrize("mode", ["lora", "full", "text", "frozen"])
def test_a_llava_of_another_family_is_refused(make_recipe: MakeRecipe, tmp_path: Path, mode: str) -> None:
    """Its pixels would be normalised for CLIP, and its layers run as Llama's."""
    vision = SiglipVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    text = LlamaConfig(vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    LlavaConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path)
    copyfile(make_recipe("lora").base / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="made of llama and siglip_vision_model"):
        train(make_recipe(mode, base=tmp_path))


def test_missing_data_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val\.jsonl is missing"):
        train(make_recipe("frozen", data=tmp_path))


def test_a_text_checkpoint_is_exported(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from export.build import export

    recipe = make_recipe("text", steps=1)
    train(recipe)
    bundle, _ = export(recipe.out / "last", "text", tmp_path / "repository")
    assert (bundle.kind, bundle.generation.grammar.decimals) == ("generator", 3)
