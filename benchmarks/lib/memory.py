"""Memory of a process and of all that it started, while it runs."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, NamedTuple

import psutil

INTERVAL_S = 2


class Peak(NamedTuple):
    """The largest value of any sample. `resident` includes mapped files and counts a page shared by several processes
    once; `anonymous` is memory that cannot be read from a file again."""

    resident_gb: float
    anonymous_gb: float


@contextmanager
def watched(pid: int, itself: bool = True) -> Iterator[list[Peak]]:
    """Samples the memory of a process and its children, or of these alone; yields a list with one peak, which is
    updated."""
    peaks, stopping = [memory_of(pid, itself)], Event()

    def watch() -> None:
        while not stopping.wait(INTERVAL_S):
            peaks[0] = Peak(*map(max, peaks[0], memory_of(pid, itself)))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        stopping.set()
        thread.join()


def memory_of(pid: int, itself: bool = True) -> Peak:
    """Memory of a process and its children now."""
    resident = anonymous = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (*[process] * itself, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it ended
                resident += each.memory_full_info().pss
                info = each.memory_info()
                anonymous += info.rss - info.shared
    return Peak(resident / 1e9, anonymous / 1e9)


def memory_mb(named: Mapping[str, int]) -> list[dict[str, Any]]:
    """Resident memory by program, of the processes with these ids and what they started; stubs of Triton together."""
    found: Counter[str] = Counter()
    for name, pid in named.items():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found[name] += process.memory_info().rss
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                    found["stubs" if "stub" in child.name() else "triton"] += child.memory_info().rss
    return [{"program": name, "resident MB": round(size / 2**20, 1)} for name, size in found.items() if size]


class Stopwatch:
    """Minutes since it was last asked."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """How many."""
        now = time.monotonic()
        minutes, self._last = (now - self._last) / 60, now
        return minutes
