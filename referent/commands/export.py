"""`referent export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from referent.commands.installation import needs_clone


@needs_clone("exporting", "export")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of the checkpoint.")],
    name: Annotated[str, typer.Option(help="Of the served model.")],
    to: Annotated[Path, typer.Option(help="Triton model repository.")] = Path("model_repository"),
    dtype: Annotated[Literal["fp32", "fp16"], typer.Option(help="fp16 is for GPUs.")] = "fp32",
    int8: Annotated[
        bool, typer.Option("--int8", help="For CPUs: integers in vision encoder and language model.")
    ] = False,
    max_batch_size: Annotated[int, typer.Option(help="Images that Triton puts together.")] = 8,
) -> None:
    """Export a checkpoint for Triton: merge, split, ONNX, check, publish."""
    from export.build import main

    given = ["--name", name, "--to", str(to), "--dtype", dtype, "--max-batch-size", str(max_batch_size)]
    main([str(checkpoint), *given, *(["--int8"] if int8 else [])], "referent export")
