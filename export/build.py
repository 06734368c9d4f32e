"""Checkpoint -> merged -> split -> ONNX -> verified -> published.

python -m export CHECKPOINT --name mini --to model_repository [--dtype fp16 | --int8]
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console

from export.graphs import export_onnx
from export.parity import ParityError, reference, verify
from export.parts import parts_of
from export.publish import publish, staging
from export.quantize import quantize
from referent.core.bundle import MODEL_NAME, TOKENIZER_FILE, Bundle
from referent.modeling.checkpoint import CheckpointError, load_checkpoint, load_checkpoint_encoder

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def export(
    checkpoint: Path, name: str, repository: Path, dtype: str = "fp32", max_batch_size: int = 8, int8: bool = False
) -> tuple[Bundle, str]:
    """Export and publish a checkpoint as the next version of `name`; returns the bundle and its digest.

    Takes little more memory than the weights as they are stored, so long as those are of `dtype`. `int8` has vision
    encoder and language model of an fp32 export multiply integers (`export.quantize`).

    Raises `CheckpointError` and, before anything is published, `ParityError`.
    """
    console = Console(stderr=True)
    model, spec = load_checkpoint(checkpoint, dtype=None)
    parts = parts_of(spec)
    console.print(f"loaded {checkpoint}")
    cases = reference(model, spec)
    if dtype == "fp32":  # before merging, or the sum would be rounded as the base is stored
        model.llava.float()
    if isinstance(model.llava, PeftModel):
        model.llava = model.llava.merge_and_unload()
    model.llava.to(DTYPES[dtype])  # the box head and the normalisation of pixels stay fp32
    sizes = {"D": model.base.config.text_config.hidden_size}
    with staging(repository) as directory:
        files = []
        with console.status("exporting"):
            for file in export_onnx(parts.split(model), cases[1].tensors, dtype, directory):
                console.print(
                    f"  {file.parent.name}: {sum(f.stat().st_size for f in file.parent.iterdir()) / 1e6:.1f} MB"
                )
                files.append(file)
        del model  # a graph and its model together may be too much
        with console.status("verifying against PyTorch"):
            worst = verify(files, cases, dtype, parts)
        if int8:
            with console.status("quantizing and verifying against PyTorch"):
                for file in files:
                    if file.parent.name in parts.LARGE:
                        quantize(file)
                worst = verify(files, cases, "int8", parts)
            spec = spec.model_copy(update={"training": spec.training | {"int8": True}})
        parts.add_files(Path(directory), spec, load_checkpoint_encoder(checkpoint, spec), max_batch_size)
        console.print("  largest differences: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))
        bundle, digest = publish(
            repository, name, spec, {file.parent.name: file.parent for file in files}, checkpoint / TOKENIZER_FILE,
            dtype=dtype, has_scores=spec.has_scores, sizes=sizes, max_batch_size=max_batch_size,
        )  # fmt: skip
    console.print(f"published {name} version {bundle.version}, {digest}")
    return bundle, digest


def main(given: Sequence[str] | None = None, program: str = "python -m export") -> None:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", required=True, help="of the served model")
    parser.add_argument("--to", type=Path, default=Path("model_repository"), help="Triton model repository")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="fp16 is for GPUs")
    parser.add_argument("--int8", action="store_true", help="for CPUs: integers in vision encoder and language model")
    parser.add_argument(
        "--max-batch-size", type=int, default=8, help="of each step; rows that a generator writes at once"
    )
    arguments = parser.parse_args(given)
    if not re.match(MODEL_NAME, arguments.name):
        parser.error(f"--name {arguments.name!r} must match {MODEL_NAME}")
    if arguments.int8 and arguments.dtype != "fp32":
        parser.error("--int8 starts from fp32: leave --dtype out")
    options = (arguments.dtype, arguments.max_batch_size, arguments.int8)
    try:
        export(arguments.checkpoint, arguments.name, arguments.to, *options)
    except (CheckpointError, ParityError) as error:
        sys.exit(f"{error}\nNothing was published.")
