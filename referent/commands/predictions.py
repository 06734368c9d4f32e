"""`referent evaluate predictions`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from referent.commands.installation import needs
from referent.commands.terminal import failure
from referent.core.text_forms import FORMS

TextForm = StrEnum("TextForm", {name: name for name in FORMS})


@needs("evaluating", "evaluate")
def predictions(
    file: Annotated[Path, typer.Argument(help="Predictions beside their true boxes.")],
    format: Annotated[Literal["rec-eval"], typer.Option(help="Format of the file.")],
    form: Annotated[
        TextForm | None, typer.Option(help="How answers in text write boxes.", show_default="detected from the text")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Judge published predictions, in any form in which models write boxes.

    A text that cannot be read is an invalid prediction, and so a miss.
    """
    from referent.evaluation.rec_eval import read_rec_eval, rec_eval_figures
    from referent.evaluation.tables import console, rec_eval_table

    try:
        sets = read_rec_eval(file).root
    except (ValueError, OSError) as error:
        raise failure(str(error)) from error
    figures: dict[str, dict[str, Any]] = {
        name: {model: rec_eval_figures(rows, form and form.value) for model, rows in models.items()}
        for name, models in sets.items()
    }
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    for name, models in figures.items():
        Console().print(console(rec_eval_table(name, models)))
