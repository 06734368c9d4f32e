"""Checkpoint -> merged -> split -> ONNX -> verified -> published.

python -m export CHECKPOINT --name mini --to model_repository [--dtype fp16] [--weights int8 | int4 | fp16]
"""

import argparse
import ctypes
import gc
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console

from export.config import ONNXRUNTIME
from export.graphs import EXTERNAL_DATA_BYTES, export_onnx, stand_ins
from export.integers import CalibrationError, quantize_throughout, requests
from export.parity import Case, ParityError, Trial, compare_rounded, reference, tolerances, trials, verify
from export.parts import KindParts, parts_of
from export.phases import phase
from export.publish import publish, refuse_names_of_others
from export.quantize import HALF, INTEGERS, ROUNDINGS, STORED, Rounding
from export.workplace import Workplace, workplace
from referent.core.bundle import MODEL_NAME, TOKENIZER_FILE, Bundle, BundleError
from referent.core.contract import part_name
from referent.core.files import told
from referent.core.kind import Arrays
from referent.core.processor import Processor
from referent.data.records import AnnotationError
from referent.generation.device_memory import DeviceError
from referent.kinds import kind_of
from referent.modeling.checkpoint import (
    CheckpointError,
    CheckpointSpec,
    load_checkpoint,
    load_checkpoint_encoder,
    load_checkpoint_spec,
)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """`dtype` is what is computed with; `weights` are int8, int4 or fp16, or None: of the same dtype."""

    dtype: str = "fp32"
    weights: str | None = None

    @property
    def tolerance(self) -> str:
        """Its name among `export.parity.tolerances`."""
        if self.weights == HALF:
            return HALF
        return "integer" if self.rounding and self.rounding.activations == INTEGERS else self.dtype

    @property
    def rounding(self) -> Rounding | None:
        """Of products, where their weights are integers."""
        return ROUNDINGS.get(self.weights or "")


@dataclass(frozen=True)
class WrittenGraphs:
    """Graphs, and what they are held against."""

    files: list[Path]
    cases: list[Case]
    hidden_size: int
    rounding_cost: float | None  # by how much rounding changes what is judged


def export(
    checkpoint: Path,
    name: str,
    repository: Path,
    dtype: str = "fp32",
    max_batch_size: int = 8,
    weights: str | None = None,
    quick_parity: bool = False,
    work: Path | None = None,
    calibration: tuple[Path, Path] | None = None,
) -> tuple[Bundle, str]:
    """Export and publish a checkpoint as the next version of `name`; returns the bundle and its digest.

    Takes little more memory than one layer in fp32 and what merging an adapter changes: weights stay in their files.
    `weights` int8 or int4 rounds those of vision encoder and language model, fp16 stores all in half
    (`export.quantize`). `quick_parity` checks two cases instead of four. `work` is a folder that keeps what each phase
    made until all is published. With `calibration`, a file of records and the folder of their images, products and
    convolutions are of integers (`export.integers`).

    Raises `CheckpointError`, `CalibrationError`, `BundleError` for a name that is not free and, before anything is
    published, `ParityError`.
    """
    console, precision = Console(stderr=True), Precision(dtype, weights)
    spec = load_checkpoint_spec(checkpoint)
    refuse_names_of_others(repository, name, [part_name(name, step) for step in kind_of(spec).steps])
    parts, tried = parts_of(spec), trials(spec, quick_parity)
    ranges = _requests(spec, checkpoint, calibration) if calibration else None
    options = {"dtype": dtype, "weights": weights, "quick_parity": quick_parity}
    with workplace(repository, work, checkpoint, options) as place:
        written = _write(checkpoint, place, parts, tried, precision, console)
        _give_back_memory()
        with phase(console, "checking the graphs", len(written.files) * len(tried)) as advance:
            tolerance, mapped = tolerances(precision.tolerance, parts), dtype == "fp16"
            worst = verify(written.files, written.cases, tolerance, parts, mapped, quick_parity, advance)
        console.print("  largest differences: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))
        if written.rounding_cost is not None:
            console.print(f"  {weights} weights change {parts.JUDGED} by {written.rounding_cost:.1e} at most")
        if quick_parity:
            console.print(f"  checked only, all parts in a chain: {'; '.join(trial.name for trial in tried)}")
        checked: dict[str, Any] = {"parity": {"cases": [trial.name for trial in tried], "largest": worst}}
        files = written.files
        if ranges:
            with phase(console, "integers throughout") as advance:
                files = _links(files, place.folder / "integers")
                changed = quantize_throughout(files, kind_of(spec).steps, parts.LARGE, parts.JUDGED, ranges)
            console.print(f"  integers change {parts.JUDGED} by {changed:.1e} on average")
            checked["weights"] = {"dtype": "int8", "activations": "int8", "changes": changed}
            weights = "int8"
        elif weights:
            block = {"block": precision.rounding.block} if precision.rounding else {}
            checked["weights"] = {"dtype": weights} | block
        spec = spec.model_copy(update={"training": spec.training | checked})
        parts.add_files(place.folder, spec, load_checkpoint_encoder(checkpoint, spec), max_batch_size)
        bundle, digest = publish(
            repository, name, spec, {file.parent.name: file.parent for file in files},
            checkpoint / TOKENIZER_FILE, dtype=dtype, weights=weights, has_scores=spec.has_scores,
            sizes={"D": written.hidden_size}, max_batch_size=max_batch_size,
        )  # fmt: skip
    console.print(f"published {name} version {bundle.version}, {digest}")
    return bundle, digest


def _requests(spec: CheckpointSpec, checkpoint: Path, calibration: tuple[Path, Path]) -> list[Arrays]:
    """What ranges are taken from, and checked with. Raises `CalibrationError` for a model that `--int8` is not for."""
    kind = kind_of(spec)
    if any(step.backend != ONNXRUNTIME for step in kind.steps):
        raise CalibrationError(f"--int8 is for models of graphs alone, not of kind {spec.kind!r}: take --weights int8")
    size = sum(file.stat().st_size for file in (checkpoint / spec.base).glob("*.safetensors"))
    if size > EXTERNAL_DATA_BYTES:
        raise CalibrationError(f"--int8 is for small models, not for {size / 1e9:.1f} GB: take --weights int8")
    return requests(*calibration, Processor(spec, load_checkpoint_encoder(checkpoint, spec), kind))


def _links(files: Sequence[Path], folder: Path) -> list[Path]:
    """The files again, FOLDER/<step>/model.onnx: to replace one does not change the original."""
    shutil.rmtree(folder, ignore_errors=True)
    folders = [shutil.copytree(file.parent, folder / file.parent.name, copy_function=os.link) for file in files]
    return [each / "model.onnx" for each in folders]


def _write(
    checkpoint: Path,
    place: Workplace,
    parts: KindParts,
    tried: Sequence[Trial],
    precision: Precision,
    console: Console,
) -> WrittenGraphs:
    """All that needs the model, which is gone afterwards."""
    model, spec = load_checkpoint(checkpoint, dtype=None)
    console.print(f"loaded {checkpoint}")
    rounding = precision.rounding
    size = sum(parameter.numel() for parameter in model.parameters())

    def computed(what: str, rounded: bool) -> list[Case]:
        with phase(console, what, size * len(tried)) as advance:
            return reference(model, spec, tried, rounding if rounded else None, advance)

    cases, cost = place.cases("exact", partial(computed, "answers of PyTorch", False)), None
    if precision == Precision("fp32"):  # before merging, or the sum would be rounded as the base is stored
        model.llava.float()
    if isinstance(model.llava, PeftModel):
        model.llava = model.llava.merge_and_unload()
    if rounding:
        exact = cases
        cases = place.cases("rounded", partial(computed, f"answers with {precision.weights} weights", True))
        cost = compare_rounded(exact, cases, rounding, parts)
    files = []
    with stand_ins(model.llava, DTYPES[precision.dtype]) as matrices:  # box head and normalisation stay fp32
        for part in parts.split(model):
            own = rounding if part.step.suffix in parts.LARGE else None

            def write(folder: Path, part: Any = part, own: Any = own) -> None:
                with phase(console, f"writing {part.step.suffix}") as advance:
                    export_onnx(
                        part, cases[1].tensors, precision.dtype, folder / "model.onnx", matrices, own, advance,
                        precision.weights == HALF,
                    )  # fmt: skip

            files.append(place.part(part.step.suffix, write) / "model.onnx")
    hidden_size: int = model.base.config.text_config.hidden_size
    return WrittenGraphs(files, cases, hidden_size, cost)


def _give_back_memory() -> None:
    """What was freed goes back to the system: the next phase may need it, in another library."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def main(given: Sequence[str] | None = None, program: str = "python -m export") -> None:
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="directory of the checkpoint")
    parser.add_argument("--name", required=True, help="name of the served model")
    parser.add_argument("--to", type=Path, default=Path("model_repository"), help="Triton model repository")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="precision; fp16 is for GPUs")
    parser.add_argument(
        "--weights",
        choices=STORED,
        help="int8, int4: round the weights of vision encoder and language model; fp16: store all in half precision",
    )
    parser.add_argument(
        "--max-batch-size",
        type=int,
        default=8,
        help="most images in a batch of Triton; most rows that a generator writes at once",
    )
    parser.add_argument("--quick-parity", action="store_true", help="check two cases instead of four")
    parser.add_argument("--work", type=Path, help="folder for intermediate files: a stopped export continues from them")
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="RECORDS",
        help="for CPUs: integers throughout, calibrated on images of these records",
    )
    parser.add_argument("--images", type=Path, help="folder of the images of --int8")
    arguments = parser.parse_args(given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that intermediate files are removed
    if arguments.max_batch_size < 1:
        parser.error(f"--max-batch-size is {arguments.max_batch_size}: give 1 or more")
    if not re.match(MODEL_NAME, arguments.name):
        parser.error(f"--name {arguments.name!r} must match {MODEL_NAME}")
    if (arguments.int8 is None) != (arguments.images is None):
        parser.error("--int8 RECORDS and --images FOLDER belong together: give both or none")
    if arguments.weights == HALF and arguments.dtype == HALF:
        parser.error("--dtype fp16 stores weights in half already: leave --weights out")
    if arguments.int8 and (arguments.dtype != "fp32" or arguments.weights):
        parser.error("--int8 starts from fp32: leave --dtype and --weights out")
    try:
        export(
            arguments.checkpoint, arguments.name, arguments.to, arguments.dtype, arguments.max_batch_size,
            arguments.weights, arguments.quick_parity, arguments.work,
            (arguments.int8, arguments.images) if arguments.int8 else None,
        )  # fmt: skip
    except (BundleError, CheckpointError, CalibrationError, DeviceError, ParityError, AnnotationError) as error:
        sys.exit(f"{error}\nNothing was published.")
    except OSError as error:
        sys.exit(f"{told(error, arguments.to)}\nNothing was published.")
    except KeyboardInterrupt:
        sys.exit("Stopped. Nothing was published." + (" --work has what is done." if arguments.work else ""))
