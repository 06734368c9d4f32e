"""All 32 layers of LLaVA-1.5-7B's shape on a machine without a GPU: made, exported to int4, served and asked.

    python -m benchmarks.thirty_two_layers WORK [--layers 32] [--weights int4] [--graphs-only]

Random weights: what it shows is that the whole path holds a model of that size, what it takes, and that the answers are
PyTorch's for the same weights. WORK needs 20 GB of disk for int4, 29 GB for fp16; what is made there is removed at the
end unless `--keep` is given, and an export that was stopped goes on. `--graphs-only` serves nothing, `--tiny` is a
rehearsal.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.lib.measuring import Report, Row, arguments_of, bars
from benchmarks.lib.memory import Peak, Stopwatch, watched
from benchmarks.lib.random_llava import LAYERS, llava_config, save_random_llava
from benchmarks.lib.service import EXPRESSIONS, PICTURE, Gateway, Subject, form, serve
from export.build import Precision
from export.graphs import run
from export.parity import FP16_TOLERANCE, FP32_TOLERANCE, INTEGER_TOLERANCE, fp32_arithmetic
from export.parts import parts_of
from export.quantize import ROUNDINGS
from referent.core.bundle import TOKENIZER_FILE, BundleError, load_bundle
from referent.core.packing import Bucket
from referent.modeling.checkpoint import SPEC_FILE, load_checkpoint

NAME = "llava-7b"
BUCKETS, TINY_BUCKETS = (Bucket(640, 1), Bucket(736, 8)), (Bucket(96, 1), Bucket(192, 8))
LIMIT_S = 7200  # for what takes seconds on a GPU
GOAL_GB = 12
ALLOWED = {"fp32": FP32_TOLERANCE, "fp16": FP16_TOLERANCE, "integer": INTEGER_TOLERANCE}  # of the image's side


def export_command(checkpoint: Path, repository: Path, work: Path, arguments: argparse.Namespace) -> list[str]:
    """As an operator types it."""
    given = ["--dtype", arguments.dtype, *(["--weights", arguments.weights] if arguments.weights else [])]
    places = [str(checkpoint), "--name", NAME, "--to", str(repository), "--work", str(work)]
    return [sys.executable, "-m", "export", *places, *given, "--quick-parity"]


def export_it(checkpoint: Path, repository: Path, work: Path, arguments: argparse.Namespace) -> Row:
    """Runs the export in a process of its own; its output goes on as it comes. Raises RuntimeError where it fails."""
    watch = Stopwatch()
    command = export_command(checkpoint, repository, work, arguments)
    with subprocess.Popen(command) as process, watched(process.pid) as peaks:
        status = process.wait()
    if status:
        raise RuntimeError(f"the export ended with status {status}: its message is above")
    bundle, _ = load_bundle(repository, NAME)
    row = took(f"export, {arguments.weights or arguments.dtype}", watch, peaks[0])
    return row | {"disk GB": bundle.size_bytes / 1e9}


def took(what: str, watch: Stopwatch, peak: Peak) -> Row:
    """Time and memory of a phase."""
    return {"what": what, "minutes": watch.lap(), "resident GB": peak.resident_gb, "anonymous GB": peak.anonymous_gb}


def boxes_of_pytorch(checkpoint: Path, subject: Subject, data: bytes, expressions: Sequence[str]) -> np.ndarray:
    """What the same weights give in PyTorch in fp32, a layer at a time: (N, 4) pixels x0,y0,x1,y1 of the picture."""
    model, spec = load_checkpoint(checkpoint, dtype=None)
    prepared = subject.processor.prepare(data, expressions)
    [arrays] = prepared.inferences
    rounding = ROUNDINGS[subject.bundle.weights] if subject.bundle.weights else None
    with fp32_arithmetic(model, rounding):
        tensors = run(parts_of(spec).split(model), {name: torch.from_numpy(array) for name, array in arrays.items()})
    outputs = {name: tensors[name].numpy() for name in ("boxes", "scores")}
    answers = subject.processor.answers(prepared, [outputs])
    return np.array([answer.box_xyxy for answer in answers])


def ask(subject: Subject, checkpoint: Path) -> tuple[list[Row], list[Row]]:
    """Serves the model, asks one question and eight at once; what that took, and the answers against PyTorch's."""
    data, texts, watch = PICTURE.read_bytes(), EXPRESSIONS[:8], Stopwatch()
    limits = {"REFERENT_DEADLINE_S": LIMIT_S, "REFERENT_GOLDEN_TIMEOUT_S": LIMIT_S}
    variables = {"REFERENT_DEFAULT_MODEL": NAME} | {name: str(value) for name, value in limits.items()}
    rows: list[Row] = []
    found: dict[str, list[list[float]]] = {}
    with (
        watched(os.getpid(), itself=False) as peaks,  # while it loads, too
        serve(subject.repository, ["--load-timeout", str(LIMIT_S)], **variables) as served,
        Gateway(served.url, LIMIT_S) as gateway,
    ):
        rows.append(took("until ready, a golden inference included", watch, peaks[0]))
        for what, asked in (("one question", texts[:1]), ("eight packed", texts)):
            found[what] = [result["box_xyxy"] for result in gateway(form(data, asked, NAME))["results"]]
            rows.append(took(what, watch, peaks[0]))
    expected = boxes_of_pytorch(checkpoint, subject, data, texts)
    rows.append({"what": "eight packed in PyTorch, fp32, the same weights", "minutes": watch.lap()})
    with Image.open(PICTURE) as picture:
        side = max(picture.size)
    one, eight = (np.array(found[what]) for what in ("one question", "eight packed"))
    allowed = ALLOWED[Precision(subject.bundle.dtype, subject.bundle.weights).tolerance]
    checks = [
        compared(what, float(difference / side), allowed, same)
        for what, difference, same in (
            ("one question against PyTorch", np.abs(one - expected[:1]).max(), True),
            ("eight packed against PyTorch", np.abs(eight - expected).max(), True),
            (
                "control: the one answer against PyTorch's to each other",
                np.abs(one - expected[1:]).max(-1).min(),
                False,
            ),
        )
    ]
    return rows, checks


def compared(what: str, difference: float, allowed: float, same: bool) -> Row:
    """A row with a verdict: a control must not agree."""
    agrees = difference <= allowed
    row = {"what": what, "largest difference, of the image's side": difference, "allowed": allowed}
    return row | {"found": "agrees" if agrees else "differs", "met": "pass" if agrees == same else "falls short"}


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--weights", choices=[*ROUNDINGS, "none"], default="int4")
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--graphs-only", action="store_true", help="export and check, serve nothing")
    parser.add_argument("--tiny", action="store_true", help="tiny widths: to see that it runs")
    parser.add_argument("--keep", action="store_true", help="remove nothing at the end")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="of mini's tokenizer")
    arguments = parser.parse_args()
    arguments.weights = None if arguments.weights == "none" else arguments.weights
    report, watch = Report("thirty_two_layers", arguments.out), Stopwatch()
    shape = f"{arguments.layers}-layers{'-tiny' if arguments.tiny else ''}"
    checkpoint = arguments.work / shape
    made = arguments.work / "-".join(filter(None, (shape, arguments.dtype, arguments.weights)))
    repository = made / "repository"
    rows: list[Row] = []
    if not (checkpoint / SPEC_FILE).exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        tokenizer = arguments.model_repository / "mini" / load_bundle(arguments.model_repository, "mini")[0].version
        config = llava_config(arguments.layers, arguments.tiny)
        buckets = TINY_BUCKETS if arguments.tiny else BUCKETS
        with watched(os.getpid()) as peaks:
            save_random_llava(checkpoint, config, tokenizer / TOKENIZER_FILE, buckets)
        size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) / 1e9
        rows.append(took(f"checkpoint of {arguments.layers} layers, fp16", watch, peaks[0]) | {"disk GB": size})
    try:
        load_bundle(repository, NAME)
    except BundleError:
        rows.append(export_it(checkpoint, repository, made / "export", arguments))
    subject = Subject(repository, NAME)
    report.add("exported", rows)
    report.add(
        "graphs against PyTorch",
        [
            {"tensor": name, "largest difference": value}
            for name, value in subject.bundle.training["parity"]["largest"].items()
        ],
    )
    if not arguments.graphs_only:
        served, checks = ask(subject, checkpoint)
        rows += served
        report.add("served and asked", served)
        most = max(row["resident GB"] for row in served if "resident GB" in row)
        goal = {"what": f"resident memory while it serves, <= {GOAL_GB} GB", "found": f"{most:.1f} GB"}
        report.add("answers", [*checks, goal | {"met": "pass" if most <= GOAL_GB else "falls short"}])
    minutes = {row["what"]: row["minutes"] for row in rows}
    report.chart(lambda axes: bars(axes, minutes, "minutes"))
    if not arguments.keep:
        shutil.rmtree(checkpoint)
        shutil.rmtree(made)
        with suppress(OSError):  # there is more in it
            arguments.work.rmdir()


if __name__ == "__main__":
    main()
