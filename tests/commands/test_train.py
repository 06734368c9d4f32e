from dataclasses import fields
from pathlib import Path

import pytest
import typer

from referent.commands.app import app
from referent.training.recipe import Recipe
from tests.support.commands import run

GIVEN = ["train", "lora", "--base", "b", "--data", "d", "--images", "i", "--out", "o"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that were to be trained."""
    recipes: list[Recipe] = []

    def train(recipe: Recipe) -> dict[str, float]:
        recipes.append(recipe)
        return {"mean_iou": 0.5}

    monkeypatch.setattr("referent.training.train.train", train)
    return recipes


def test_every_field_of_the_recipe_is_an_option_with_its_default() -> None:
    parameters = typer.main.get_command(app).commands["train"].params
    assert [parameter.name for parameter in parameters if parameter.name != "help"] == [f.name for f in fields(Recipe)]
    assert {p.name: p.default for p in parameters if p.name in Recipe.__dict__} == {
        f.name: f.default for f in fields(Recipe) if f.name in Recipe.__dict__
    }


def test_without_options_it_is_the_published_recipe(trained: list[Recipe]) -> None:
    assert run(*GIVEN)[:2] == (0, "mean_iou 0.5: o/best\nto serve it: referent export o/best --name NAME\n")
    assert trained == [Recipe("lora", *map(Path, "bdio"))]


def test_options_become_settings_of_their_type(trained: list[Recipe]) -> None:
    code, *_ = run(*GIVEN, "--lora-rank", 8, "--learning-rate", "1e-3", "--no-scores", "--base-dtype", "bf16")
    assert code == 0
    assert (trained[0].lora_rank, trained[0].learning_rate, trained[0].scores, trained[0].base_dtype) == (
        8,
        1e-3,
        False,
        "bf16",
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--lora-rank", "many"], "'--lora-rank': Input should be a valid integer"),
        (["--base-dtype", "int8"], "'int8' is not one of"),
        (["--nope", "1"], "--nope"),
    ],
    ids=["number", "choice", "unknown"],
)
def test_wrong_options_are_told(trained: list[Recipe], wrong: list[str], says: str) -> None:
    code, _, errors = run(*GIVEN, *wrong)
    assert (code, says in errors) == (2, True), errors
    assert trained == []
