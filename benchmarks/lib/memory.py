"""Memory of a process and of all that it started, while it runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import NamedTuple

import psutil

INTERVAL_S = 2


class Peak(NamedTuple):
    """The most at any look. `resident` counts a page once that several processes share, mapped files included;
    `anonymous` is what cannot be read from a file again."""

    resident_gb: float
    anonymous_gb: float


@contextmanager
def watched(pid: int) -> Iterator[list[Peak]]:
    """Looks at a process and its children now and then; the value has one peak, which grows."""
    peaks, stopping = [memory_of(pid)], Event()

    def watch() -> None:
        while not stopping.wait(INTERVAL_S):
            peaks[0] = Peak(*map(max, peaks[0], memory_of(pid)))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stopping.set()
        thread.join()


def memory_of(pid: int) -> Peak:
    """Of a process and its children at this moment."""
    resident = anonymous = 0
    with suppress(psutil.Error):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.Error):  # it ended
                resident += process.memory_full_info().pss
                info = process.memory_info()
                anonymous += info.rss - info.shared
    return Peak(resident / 1e9, anonymous / 1e9)


class Stopwatch:
    """Minutes since it was last asked."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """How many."""
        now = time.monotonic()
        minutes, self._last = (now - self._last) / 60, now
        return minutes
