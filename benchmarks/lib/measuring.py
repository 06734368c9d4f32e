"""Shared by all benchmarks: times in alternating blocks, tables, JSON with the machine and commit, charts."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runtime.distribution import VERSION as TRITON_VERSION

OUT = Path("build/benchmarks")
WARM_UP = 3  # calls at the start of each block that don't count: caches and clocks belong to the block before
Row = dict[str, Any]
Blocks = list[list[float]]  # milliseconds of each call, a list a round


def alternate(paths: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, Blocks]:
    """Times the paths in blocks A-B-A-B, so that a slow moment of the machine affects all of them."""
    times: dict[str, Blocks] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, call in paths.items():
            for _ in range(WARM_UP):
                call()
            times[name].append([milliseconds(call) for _ in range(calls)])
    return times


def milliseconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile, least and most."""
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "min": min(times), "max": max(times)}


def flat(blocks: Blocks) -> list[float]:
    """All rounds together."""
    return [time for block in blocks for time in block]


def median(blocks: Blocks) -> float:
    """Of all calls."""
    return statistics.median(flat(blocks))


def over_rounds(figure: Callable[..., float], *paths: Blocks) -> list[float]:
    """A figure of the paths' medians for each round, valid even if the machine's speed changes between rounds."""
    return [figure(*map(statistics.median, blocks)) for blocks in zip(*paths, strict=True)]


def spread(values: Sequence[float]) -> str:
    """The median with the least and the most: `1.14 (1.11 to 1.20)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def environment() -> dict[str, str]:
    """Where, when and on which commit something is measured."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = _output([*git, "rev-parse", "--short", "HEAD"]) or "unknown"
    if _output([*git, "status", "--porcelain", "--untracked-files=no"]):
        commit += ", with changes"
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    cards = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]).splitlines()
    return {
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "command": f"python -m {sys.modules['__main__'].__spec__.name} {' '.join(sys.argv[1:])}".strip()
        if getattr(sys.modules["__main__"], "__spec__", None)
        else " ".join(sys.argv),
        "commit": commit,
        "hardware": "; ".join([f"{len(os.sched_getaffinity(0))} cores of {processor}", *cards]),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "versions": ", ".join([f"Python {platform.python_version()}", f"tritonserver {TRITON_VERSION}", *_packages()]),
    }


class Goal(NamedTuple):
    """What was found for a goal; `met` is None if it could not be measured."""

    what: str
    goal: str
    found: str
    met: bool | None


class Report:
    """Tables of one benchmark: printed as they come, kept with the environment in `OUT/NAME.json`, charts beside it."""

    def __init__(self, name: str, out: Path) -> None:
        self._name, self._out = name, out
        self.environment = environment()
        self._tables: dict[str, list[Row]] = {}
        out.mkdir(parents=True, exist_ok=True)
        print(f"## {name}\n\n" + "\n".join(f"- {key}: {value}" for key, value in self.environment.items()), flush=True)

    def add(self, title: str, rows: list[Row]) -> None:
        """Prints the rows, whose keys are the columns, and keeps them."""
        self._tables[title] = rows
        print(f"\n### {title}\n\n{markdown(rows)}", flush=True)
        content = {"benchmark": self._name, **self.environment, "tables": self._tables}
        (self._out / f"{self._name}.json").write_text(json.dumps(content, indent=1) + "\n")

    def chart(self, draw: Callable[[Axes], None]) -> None:
        """Writes one chart, `NAME.png`."""
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.3)
        draw(axes)
        file = self._out / f"{self._name}.png"
        figure.savefig(file, dpi=110)
        print(f"\nchart: {file}", flush=True)


def markdown(rows: list[Row]) -> str:
    """A table; the columns are all keys, in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows])


def bars(axes: Axes, values: Mapping[str, float], label: str) -> None:
    """A horizontal bar for each name, its value beside it."""
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(label)


def lines(axes: Axes, rows: Sequence[Row], x: str, y: str, by: str | None = None, **settings: Any) -> None:
    """Column `y` over column `x`, a line for each value of column `by`; rows without `y` are left out."""
    drawn = [row for row in rows if row.get(y) is not None]
    for value in dict.fromkeys(row[by] if by else "" for row in drawn):
        own = [row for row in drawn if not by or row[by] == value]
        axes.plot([row[x] for row in own], [row[y] for row in own], marker="o", label=str(value))
    if by:
        axes.legend(fontsize=8)
    axes.set(**{"xlabel": x, "ylabel": y, "ylim": 0, **settings})


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for JSON and charts (default: {OUT})")
    return parser


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _packages() -> list[str]:
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "torch", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
