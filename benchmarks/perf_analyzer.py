"""Triton's own load tester, perf_analyzer, against the ensemble over gRPC; also with system shared memory.

    make perf-analyzer                                   # installs the program, once
    python -m benchmarks.perf_analyzer                   # starts a Triton of its own
    python -m benchmarks.perf_analyzer --url HOST:8001   # or asks yours
    python -m benchmarks.perf_analyzer --data-only data.json --picture photo.jpg --expression "the red cup"

`--data-only` writes the input data of one request, for runs of your own:
`perf_analyzer -m mini -i grpc -u HOST:8001 --input-data data.json --shape ...`, as printed.
"""

import base64
import csv
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.lib.measuring import Report, Row, arguments_of, lines
from benchmarks.lib.service import EXPRESSIONS, PICTURE, REPOSITORY, Subject
from referent.core.kind import Arrays, Options
from runtime.distribution import find_distribution
from runtime.launcher import TritonServer

WHEEL = "tritonclient==2.51.0"  # of tritonserver's own version; 2.52 and later need glibc 2.38
PLATFORM = "manylinux1_x86_64"
LIBRARIES = {"libb64.so.0d": "libb64*", "libcudart.so.12": "libcudart*"}  # its name for each -> tritonserver's copy
UNSTABLE = "Failed to obtain stable measurement"
STABILITY = 50  # percent; shared virtual machines vary that much
SHARED_MEMORY_BYTES = 2**20  # for the outputs of a request


def folder() -> Path:
    """Where the program lives."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "referent" / "perf_analyzer"


def install() -> None:
    """Takes the program out of the wheel, and its libraries out of tritonserver's. Raises RuntimeError."""
    target, wheel = folder(), find_distribution().wheel
    if wheel is None:
        raise RuntimeError("a tritonserver of NVIDIA's container is on PATH: take perf_analyzer from its SDK container")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        options = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--dest", directory, "--quiet"]
        pip = subprocess.run([sys.executable, "-m", "pip", "download", *options, WHEEL], capture_output=True, text=True)
        if pip.returncode:
            raise RuntimeError(f"{WHEEL} could not be downloaded: {pip.stderr.strip()[-500:]}")
        with zipfile.ZipFile(next(Path(directory).glob("*.whl"))) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/perf_analyzer"))
            (target / "perf_analyzer").write_bytes(archive.read(member))
    (target / "perf_analyzer").chmod(0o755)
    for name, pattern in LIBRARIES.items():
        (target / name).unlink(missing_ok=True)
        (target / name).symlink_to(next((wheel / "nvidia_pytriton.libs").glob(pattern)))
    subprocess.run([target / "perf_analyzer", "--version"], env=environment(), check=True)


def environment() -> dict[str, str]:
    """With its libraries on the path."""
    wheel = find_distribution().wheel
    paths = [str(folder()), f"{wheel}/nvidia_pytriton.libs", os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))}


def input_data(arrays: Arrays) -> str:
    """perf_analyzer's JSON for one request of batch 1: raw bytes in base64."""
    tensors = {
        name: {"b64": base64.b64encode(array.tobytes()).decode(), "shape": list(array.shape[1:])}
        for name, array in arrays.items()
    }
    return json.dumps({"data": [tensors]})


def shapes(arrays: Arrays) -> list[str]:
    """The options that fix the dimensions which vary."""
    return [f"--shape={name}:{','.join(map(str, array.shape[1:]))}" for name, array in arrays.items()]


def analyze(url: str, model: str, data: Path, arrays: Arrays, concurrency: int, shared: bool, seconds: float) -> Row:
    """Runs the program; a row, or a note that it found none. Raises RuntimeError with its message if it fails."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "figures.csv")
        command = [str(folder() / "perf_analyzer"), "-m", model, "-i", "grpc", "-u", url, "--percentile=95"]
        command += ["--input-data", str(data), *shapes(arrays), f"--concurrency-range={concurrency}", "-f", str(file)]
        command += [
            f"--measurement-interval={int(1000 * seconds)}",
            "--max-trials=10",
            f"--stability-percentage={STABILITY}",
        ]
        if shared:
            command += ["--shared-memory=system", f"--output-shared-memory-size={SHARED_MEMORY_BYTES}"]
        run = subprocess.run(command, capture_output=True, text=True, env=environment())
        if not file.exists() and UNSTABLE in run.stdout + run.stderr:
            return {"concurrency": concurrency, "note": "no three windows agreed: give it more --seconds"}
        if not file.exists():
            raise RuntimeError(f"perf_analyzer failed:\n{(run.stdout + run.stderr)[-2000:]}")
        with file.open() as stream:
            line = next(csv.DictReader(stream))
    return (
        {"concurrency": concurrency, "images/s": float(line["Inferences/Second"])}
        | {f"p{p} ms": float(line[f"p{p} latency"]) / 1000 for p in (50, 95, 99)}
        | {"server queue ms": float(line["Server Queue"]) / 1000, "client send ms": float(line["Client Send"]) / 1000}
    )


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY, help="of the model's tokenizer and sizes")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--url", help="gRPC of a running Triton; default: start one")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--expression", action="append", help=f"repeatable; default: {EXPRESSIONS[0]}")
    parser.add_argument("--max-instances", type=int, help="of an expression, for models that give several")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=5, help="of a measurement; three must agree")
    parser.add_argument("--install", action="store_true", help="install the program and end")
    parser.add_argument("--data-only", type=Path, metavar="FILE", help="write the input data and end")
    arguments = parser.parse_args()
    if arguments.install:
        try:
            install()
        except RuntimeError as error:
            sys.exit(str(error))
        print(f"installed: {folder()}/perf_analyzer")
        return
    subject = Subject(arguments.model_repository, arguments.model)
    expressions, options = arguments.expression or EXPRESSIONS[:1], Options(arguments.max_instances)
    arrays = subject.arrays(arguments.picture.read_bytes(), expressions, options)
    if arguments.data_only:
        arguments.data_only.write_text(input_data(arrays))
        print(
            f"perf_analyzer -m {arguments.model} -i grpc -u {arguments.url or 'HOST:8001'} "
            f"--input-data {arguments.data_only} {' '.join(shapes(arrays))}"
        )
        return
    if not (folder() / "perf_analyzer").exists():
        parser.error("perf_analyzer is not installed: make perf-analyzer")
    report = Report("perf_analyzer", arguments.out)
    data = arguments.out / "perf_analyzer-data.json"
    data.write_text(input_data(arrays))
    rows: list[Row] = []
    with ExitStack() as stack:
        if not (url := arguments.url):
            server = TritonServer(subject.repository, [subject.name], grpc_port=0, shared_memory=True)
            url = stack.enter_context(server).grpc_url
        for shared in (False, True):
            for concurrency in arguments.concurrency:
                key = {"transport": "gRPC + system shared memory" if shared else "gRPC"}
                rows.append(key | analyze(url, subject.name, data, arrays, concurrency, shared, arguments.seconds))
    report.add(f"perf_analyzer, one picture; three windows within {STABILITY} % of each other", rows)
    report.chart(lambda axes: lines(axes, rows, "concurrency", "images/s", "transport", xscale="log"))


if __name__ == "__main__":
    main()
