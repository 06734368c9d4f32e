"""`referent bench`."""

import ast
import subprocess
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from referent.commands.installation import needs_clone
from referent.commands.terminal import failure

# for app.command(context_settings=...): everything after the name is passed to the benchmark
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which benchmark; it gets all further arguments.")] = None,
) -> None:
    """Run a benchmark, or list all; needs a clone of the project."""
    with needs_clone("benchmarking", "bench") as clone:
        benchmarks = clone / "benchmarks"
    scripts = {file.stem: file for file in sorted(benchmarks.glob("*.py")) if "def main(" in file.read_text()}
    if name is None:
        table = Table("benchmark", "what it measures", "figures: benchmarks/RESULTS.md")
        for stem, file in scripts.items():
            summary = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
            table.add_row(stem, escape(summary), f"referent bench {stem} --help")
        Console().print(table)
    elif name not in scripts:
        raise failure(f"no benchmark {name!r}; there are: {', '.join(scripts)}")
    else:
        command = [sys.executable, "-m", f"benchmarks.{name}", *context.args]
        raise typer.Exit(subprocess.run(command, cwd=clone).returncode)
