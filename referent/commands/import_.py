"""`referent import`: checkpoints of other projects, a command for each format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from referent.commands.installation import needs
from referent.commands.terminal import failure

app = typer.Typer(help="Make a checkpoint of what another project trained.", no_args_is_help=True)

BASE = Annotated[Path, typer.Option(help="The LLaVA directory that it was trained on (config.json, weights).")]
OUT = Annotated[Path, typer.Option(help="Folder of the new checkpoint, which refers to the base.")]


@app.command("visual-grounding")
@needs("importing", "train")
def visual_grounding(
    source: Annotated[Path, typer.Argument(help="best.pth or latest.pth.")],
    base: BASE,
    out: OUT,
    read: Annotated[
        Literal["last", "left600"], typer.Option(help="The position that the head reads; the command says more.")
    ] = "last",
) -> None:
    """Import visual-grounding-api's checkpoints, main or ablation."""
    from referent.modeling.importers.visual_grounding import READINGS, import_visual_grounding
    from referent.modeling.weights import CheckpointError

    try:
        spec = import_visual_grounding(source, base, out, read)
    except (CheckpointError, OSError) as error:
        raise failure(str(error)) from error
    for name, figures in spec.evaluation.items():
        typer.echo(f"{name}: " + ", ".join(f"{figure} {value:.4f}" for figure, value in figures.items()))
    typer.echo(READINGS[read])
    typer.echo(f"to serve it: referent export {out} --name NAME")
