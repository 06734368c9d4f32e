"""The command line: referent --help"""

from typing import Annotated, Any

import stamina.instrumentation
import typer
from typer.core import TyperGroup

from referent import __version__
from referent.commands import bench, data, import_, sweep
from referent.commands.batch import batch
from referent.commands.compare import compare
from referent.commands.demo import demo
from referent.commands.doctor import doctor
from referent.commands.evaluate import evaluate
from referent.commands.export import export
from referent.commands.ground import ground
from referent.commands.models import models
from referent.commands.predictions import predictions
from referent.commands.serve import serve
from referent.commands.train import train


class _Evaluate(TyperGroup):
    """Arguments that don't begin with a command's name go to `records`: `referent evaluate jsonl --annotations ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_records = bool(args) and args[0] not in (*self.commands, "--help")
        return super().parse_args(ctx, ["records", *args] if is_records else args)


evaluation = typer.Typer(
    help="Judge a model, or predictions (the default: `records`).", cls=_Evaluate, no_args_is_help=True
)
evaluation.command("records")(evaluate)
evaluation.command("predictions")(predictions)

app = typer.Typer(
    help="Visual grounding: where in an image is what these words refer to?",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"referent {__version__}")
        raise typer.Exit


@app.callback()
def configure(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    stamina.instrumentation.set_on_retry_hooks([])  # its log lines would be mixed into the output of commands


app.command()(serve)
app.command()(ground)
app.command()(batch)
app.command()(models)
app.command()(export)
app.command(context_settings=bench.CONTEXT)(bench.bench)
app.command()(demo)
app.command()(doctor)
app.command()(train)
app.add_typer(evaluation, name="evaluate")
app.command()(compare)
app.command(context_settings=sweep.CONTEXT)(sweep.sweep)
app.add_typer(data.app, name="data")
app.add_typer(import_.app, name="import")
