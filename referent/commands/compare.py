"""`referent compare`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from referent.commands.installation import needs
from referent.commands.terminal import failure


@needs("comparing", "evaluate")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `referent evaluate --out` wrote; the first is the base.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write a report into a new folder below this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show several evaluations of the same records side by side."""
    if len(runs) < 2:
        raise failure("one run can't be compared: give two or more", 2)
    try:
        from referent.evaluation.comparison import compare as compare_runs
        from referent.evaluation.comparison import comparison_table, load_runs, write_comparison
        from referent.evaluation.tables import console

        loaded = load_runs(runs)
        figures = compare_runs(loaded)
        folder = write_comparison(out, loaded, figures) if out else None
    except (ValueError, OSError) as error:
        raise failure(str(error)) from error
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        Console().print(console(comparison_table(figures)))
    if folder:
        typer.echo(f"report: {folder / 'report.html'}", err=True)
