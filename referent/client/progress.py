"""A progress bar for commands and loops over many images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn


@contextmanager
def progress_bar(total: int | None, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar on standard error, if that is a terminal; call the value for each of the `total` that is done."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda: bar.advance(task)
