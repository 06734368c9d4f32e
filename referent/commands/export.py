"""`referent export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from referent.commands.installation import needs_clone


@needs_clone("exporting", "export")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of the checkpoint.")],
    name: Annotated[str, typer.Option(help="Name of the served model.")],
    to: Annotated[Path, typer.Option(help="Triton model repository.")] = Path("model_repository"),
    dtype: Annotated[Literal["fp32", "fp16"], typer.Option(help="Precision; fp16 is for GPUs.")] = "fp32",
    weights: Annotated[
        Literal["int8", "int4", "fp16"] | None,
        typer.Option(
            help="int8, int4: round the weights of vision encoder and language model. fp16: all in half precision.",
            show_default="as --dtype",
        ),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(help="Most images in a batch of Triton.")] = 8,
    quick_parity: Annotated[bool, typer.Option("--quick-parity", help="Check two cases instead of four.")] = False,
    int8: Annotated[
        Path | None,
        typer.Option(metavar="RECORDS", help="For CPUs: integers throughout, calibrated on images of these records."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images of --int8.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for intermediate files: a stopped export continues from them.")
    ] = None,
) -> None:
    """Export a checkpoint for Triton: merge, split, ONNX, check, publish."""
    from export.build import main

    given = ["--name", name, "--to", str(to), "--dtype", dtype, "--max-batch-size", str(max_batch_size)]
    given += ["--weights", weights] if weights else []
    for option, value in (("--work", work), ("--int8", int8), ("--images", images)):
        given += [option, str(value)] if value else []
    main([str(checkpoint), *given, *(["--quick-parity"] if quick_parity else [])], "referent export")
