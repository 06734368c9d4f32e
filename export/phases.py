"""Shows which phase an export is in, its progress and the remaining time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[float], None]  # is told how much more is done
LINE_S = 60  # between lines where there is no terminal to draw a bar on


def unseen(amount: float) -> None:
    """An `Advance` that shows nothing."""


@contextmanager
def phase(console: Console, what: str, total: float = 1) -> Iterator[Advance]:
    """Shows the progress of a phase with so much work, and then its duration."""
    start = line = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(amount: float) -> None:
            nonlocal line
            progress.advance(task, amount)
            done, now = progress.tasks[0].completed, time.monotonic()
            if not console.is_terminal and now - line > LINE_S:
                line = now
                left = (now - start) * (total / done - 1) if done else 0
                console.print(f"  {what}: {done / total:.0%}, about {max(left, 0):.0f} s left")

        yield advance
    console.print(f"  {what}: {time.monotonic() - start:.0f} s")
