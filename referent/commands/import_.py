"""`referent import`: checkpoints of other projects, a command for each format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from referent.commands.installation import needs
from referent.commands.terminal import failure

app = typer.Typer(help="Make a checkpoint from another project's weights.", no_args_is_help=True)

BASE = Annotated[Path, typer.Option(help="The LLaVA directory that it was trained on (config.json, weights).")]
OUT = Annotated[Path, typer.Option(help="Folder of the new checkpoint, which refers to the base.")]


@app.command("visual-grounding")
@needs("importing", "train")
def visual_grounding(
    source: Annotated[Path, typer.Argument(help="best.pth or latest.pth.")],
    base: BASE,
    out: OUT,
    read: Annotated[
        Literal["last", "left600"], typer.Option(help="The position that the head reads; the output explains it.")
    ] = "last",
) -> None:
    """Import visual-grounding-api's checkpoints, main or ablation."""
    from referent.modeling.importers.visual_grounding import READ_POSITIONS, import_visual_grounding
    from referent.modeling.weights import CheckpointError

    try:
        spec = import_visual_grounding(source, base, out, read)
    except (CheckpointError, OSError) as error:
        raise failure(str(error)) from error
    for name, figures in spec.evaluation.items():
        typer.echo(f"{name}: " + ", ".join(f"{figure} {value:.4f}" for figure, value in figures.items()))
    typer.echo(READ_POSITIONS[read])
    typer.echo(f"to serve it: referent export {out} --name NAME")


@app.command("llava")
@needs("importing", "train")
def llava(
    source: Annotated[Path, typer.Argument(help="A LLaVA-1.5 directory, such as llava-1.5-7b-hf.")],
    out: OUT,
) -> None:
    """Import the published LLaVA-1.5, which answers with a box in text."""
    from referent.modeling.importers.llava_hf import import_llava
    from referent.modeling.weights import CheckpointError

    try:
        import_llava(source, out)
    except (CheckpointError, OSError) as error:
        raise failure(str(error)) from error
    typer.echo("It always gives a box: it was never taught to say that nothing is there. Read the scores.")
    typer.echo(f"to serve it: referent export {out} --name NAME")


@app.command("point-vlm")
@needs("importing", "train")
def point_vlm(
    adapter: Annotated[
        Path,
        typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors, or a checkpoint-N."),
    ],
    base: Annotated[Path, typer.Option(help="The PaliGemma-2 directory that it was trained on.")],
    out: OUT,
) -> None:
    """Import point-vlm's adapters for PaliGemma-2, which answers with one point or several."""
    from referent.modeling.importers.paligemma import import_point_vlm
    from referent.modeling.weights import CheckpointError

    try:
        import_point_vlm(adapter, base, out)
    except (CheckpointError, OSError) as error:
        raise failure(str(error)) from error
    _compare_bases(adapter, base)
    typer.echo("It always points: it was never taught to say that nothing is there. Read the scores.")
    typer.echo(f"to serve it: referent export {out} --name NAME")


@app.command("paligemma")
@needs("importing", "train")
def paligemma(
    source: Annotated[
        Path,
        typer.Argument(
            help="A PaliGemma or PaliGemma-2: a mix, such as paligemma2-3b-mix-448, or a pt with --adapter."
        ),
    ],
    out: OUT,
    adapter: Annotated[Path | None, typer.Option(help="PEFT folder, for a model that was only pre-trained.")] = None,
) -> None:
    """Import the published PaliGemma, which answers with boxes."""
    from referent.modeling.importers.paligemma import import_paligemma
    from referent.modeling.weights import CheckpointError

    try:
        import_paligemma(source, out, adapter)
    except (CheckpointError, OSError) as error:
        raise failure(str(error)) from error
    if adapter is not None:
        _compare_bases(adapter, source)
    elif "-pt-" in source.resolve().name:
        typer.echo("A pt was only pre-trained: it detects well with an --adapter alone.")
    typer.echo(f"to serve it: referent export {out} --name NAME")


@app.command("vpp-llava")
@needs("importing", "train")
def vpp_llava(
    source: Annotated[Path, typer.Argument(help="Directory of VPP-LLaVA-7b or -13b, or a model trained like them.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint, which holds all weights.")],
    clip: Annotated[
        Path | None,
        typer.Option(help="Directory of its CLIP, only if it isn't the published one or wasn't trained."),
    ] = None,
) -> None:
    """Import VPP-LLaVA, which answers in text."""
    from referent.modeling.importers.vpp_llava import import_vpp_llava
    from referent.modeling.weights import CheckpointError

    try:
        import_vpp_llava(source, out, clip)
    except (CheckpointError, OSError) as error:
        raise failure(str(error)) from error
    typer.echo(f"to serve it: referent export {out} --name NAME")


def _compare_bases(adapter: Path, base: Path) -> None:
    """Bases of one size have weights of the same names and shapes, so only the name can tell them apart."""
    from referent.modeling.weights import adapter_base

    if (stated := adapter_base(adapter)) not in (None, base.resolve().name):
        typer.echo(f"The adapter says that its base is {stated}, and {base} was given: be sure that they are the same.")
