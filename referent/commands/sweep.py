"""`referent sweep`: a plain grid over LoRA's rank (alpha is twice the rank), the learning rate and the batch.

Each cell is a run with its own folder and process; finished cells are not run again, so a stopped sweep continues.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from referent.commands.installation import needs
from referent.commands.terminal import failure
from referent.training.recipe import RESULT_FILE, Base, Data, Images

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}  # for app.command(context_settings=...)
COLUMNS = ("rank", "learning_rate", "batch", "mean_iou", "acc@0.5", "auroc", "best_step")


@needs("training", "train")
def sweep(
    context: typer.Context,
    base: Base,
    data: Data,
    images: Images,
    out: Annotated[Path, typer.Option(help="A folder for each cell, and the results; finished cells stay.")],
    mode: Annotated[Literal["lora", "qlora", "text"], typer.Option(help="Mode of `referent train`.")] = "lora",
    ranks: Annotated[str, typer.Option(help="LoRA ranks; alpha is twice the rank.")] = "8,16,32",
    learning_rates: Annotated[str, typer.Option(help="Learning rates, separated by commas.")] = "1e-4,2e-4",
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "8,16",
) -> None:
    """Train every combination of rank, learning rate and batch; further options go to `referent train`."""
    import referent.training.train  # noqa: F401  # fails here, not in the first cell, if a package is missing

    try:
        cells = grid(
            [int(v) for v in ranks.split(",")], [float(v) for v in learning_rates.split(",")],
            [int(v) for v in batches.split(",")],
        )  # fmt: skip
    except ValueError as error:
        raise failure(f"{error}: --ranks, --learning-rates and --batches are numbers, separated by commas") from error
    options = [mode, "--base", str(base), "--data", str(data), "--images", str(images), *context.args]
    results = []
    try:
        for result in run_sweep(cells, options, out):
            results.append(result)
            table = write_results(results, out)
    except subprocess.CalledProcessError as error:
        raise failure(
            f"a cell failed (exit status {error.returncode}), see above; the same command continues"
        ) from error
    Console().print(table)


class Cell(NamedTuple):
    """One point of the grid."""

    rank: int
    learning_rate: float
    batch: int

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return f"rank{self.rank}-lr{self.learning_rate:g}-batch{self.batch}"

    @property
    def options(self) -> list[str]:
        """Options for `referent train`."""
        return [
            "--lora-rank", str(self.rank), "--lora-alpha", str(2 * self.rank),
            "--learning-rate", str(self.learning_rate), "--batch", str(self.batch),
        ]  # fmt: skip


def grid(ranks: Sequence[int], learning_rates: Sequence[float], batches: Sequence[int]) -> list[Cell]:
    """Every combination."""
    return [Cell(*values) for values in product(ranks, learning_rates, batches)]


def run_sweep(cells: Sequence[Cell], train_options: Sequence[str], out: Path) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yields each cell with its best validation figures once it is done. Raises subprocess.CalledProcessError."""
    for cell in cells:
        result = out / cell.name / RESULT_FILE
        if not result.is_file():
            command = [sys.executable, "-m", "referent", "train", *train_options, *cell.options]
            subprocess.run([*command, "--out", str(out / cell.name)], check=True)
        yield cell, json.loads(result.read_text())


def write_results(results: Sequence[tuple[Cell, dict[str, Any]]], out: Path) -> Table:
    """Writes sweep.csv, sweep.md and sweep.png, best first; returns the table for the terminal."""
    from referent.training.curves import plot_sweep

    ordered = sorted(results, key=lambda result: -result[1]["mean_iou"])
    rows = [cell._asdict() | {name: figures.get(name, "") for name in COLUMNS[3:]} for cell, figures in ordered]
    with (out / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*COLUMNS)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    (out / "sweep.md").write_text("\n".join(lines) + "\n")
    plot_sweep(rows, out / "sweep.png")
    return table
