"""Time and peak memory of `python -m export`.

    python -m benchmarks.export_memory [--checkpoint DIR]

Without a checkpoint, random weights of mini's shape are exported; time and memory depend on the shape alone.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lib.checkpoints import save_random, spec_like
from benchmarks.lib.measuring import Report, Row, arguments_of, bars

MODEL = "mini"
MIB = 2**20


def export_cost(checkpoint: Path, repository: Path, dtype: str) -> Row:
    """Runs the export in its own process. Raises RuntimeError with its message if it fails."""
    command = [sys.executable, "-m", "export", str(checkpoint), "--name", "measured", "--to", str(repository)]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--dtype", dtype], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        message = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the export failed:\n{message}")
    published = sum(file.stat().st_size for file in repository.rglob("*") if file.is_file())
    return {
        "dtype": dtype,
        "seconds": time.perf_counter() - start,
        "peak memory MiB": usage.ru_maxrss / 1024,
        "published MiB": published / MIB,
    }


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="of mini's tokenizer")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights of mini's shape")
    parser.add_argument("--dtype", nargs="+", default=["fp32", "fp16"])
    arguments = parser.parse_args()
    report = Report("export", arguments.out)
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = arguments.checkpoint
        if not checkpoint:
            checkpoint = save_random(Path(temporary, "checkpoint"), *spec_like(arguments.model_repository, MODEL))
        rows = [export_cost(checkpoint, Path(temporary, dtype), dtype) for dtype in arguments.dtype]
    report.add("a process of its own, from start to published", rows)
    report.chart(lambda axes: bars(axes, {row["dtype"]: row["peak memory MiB"] for row in rows}, "peak memory, MiB"))


if __name__ == "__main__":
    main()
