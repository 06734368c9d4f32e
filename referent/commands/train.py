"""`referent train`."""

from inspect import signature
from typing import Any

import typer

from referent.commands.installation import needs
from referent.commands.terminal import failure
from referent.training.recipe import Recipe, RecipeError


@needs("training", "train")
def train(**settings: Any) -> None:
    """Train a grounding model on records. The defaults are the published recipe."""
    from referent.modeling.checkpoint import CheckpointError
    from referent.training.record_stream import DataError
    from referent.training.train import train as run

    recipe = Recipe(**settings)
    try:
        figures = run(recipe)
    except (CheckpointError, DataError, RecipeError) as error:
        raise failure(str(error)) from error
    best = recipe.out / "best"
    typer.echo(", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + f": {best}")
    typer.echo(f"to serve it: referent export {best} --name NAME")


train.__signature__ = signature(Recipe)  # type: ignore[attr-defined]  # the fields of the recipe are the options
