"""What commands say to a person: why they fail, and how far they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn


def failure(message: str, code: int = 1) -> typer.Exit:
    """Prints the error in one line; raise what it returns."""
    typer.secho(f"error: {message}", fg="red", err=True)
    return typer.Exit(code)


@contextmanager
def progress_bar(total: int | None, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar on standard error where that is a terminal; call the value for each of the `total` that is done."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda: bar.advance(task)
