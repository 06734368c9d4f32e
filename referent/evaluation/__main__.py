"""Evaluate and compare: python -m referent.evaluation evaluate --help"""

import typer

from referent.evaluation.command import compare, evaluate

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.command()(evaluate)
app.command()(compare)

if __name__ == "__main__":
    app()
