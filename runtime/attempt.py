"""A version that is being loaded."""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import IO

from referent.triton.repository import Release

CHECK_TIMEOUT_S = 900  # for checking a version's files: 45 GB at 50 MB/s
HANG_S = 3  # after a stub died: Triton tells of it within one or two seconds, or waits for it for ever


class VersionError(RuntimeError):
    """A version can't be served."""


class HangError(VersionError):
    """Triton neither loads a model nor refuses it: whatever needs the same parts waits, until the server is ended."""


@dataclass(frozen=True)
class Served:
    """A version in the private repository. The names of its parts end with a tag of its digest, so that a broken
    version can't affect another; `lock` keeps others from removing its files."""

    release: Release
    golden_s: float  # what its golden inference took
    lock: IO[bytes]

    @property
    def parts(self) -> list[str]:
        """Their names in the private repository."""
        return [part + tag_of(self.release.digest) for part in self.release.parts]


class Attempt:
    """A version that is being loaded in a thread of its own, which may never return."""

    def __init__(self, name: str, digest: str, others: deque[str], work: Callable[["Attempt"], Served]) -> None:
        self.name, self.digest, self.others = name, digest, others  # the others are tried if this one is no good
        self.superseded = False  # whether another was named meanwhile
        self.candidate = f"{name}@candidate{tag_of(digest)}"  # what it is called beside the one that serves
        self.deadline = time.monotonic() + CHECK_TIMEOUT_S  # to load it counts from when its files were checked
        self.died = math.inf  # when one of its stubs did
        self.outcome: Future[Served] = Future()
        Thread(target=self._run, args=(work,), name=f"try {name}", daemon=True).start()

    def _run(self, work: Callable[["Attempt"], Served]) -> None:
        try:
            self.outcome.set_result(work(self))
        except Exception as error:
            self.outcome.set_exception(error)

    def note(self, dead: set[str]) -> None:
        """Call with the models that died."""
        if any(model.endswith(tag_of(self.digest)) for model in dead):
            self.died = min(self.died, time.monotonic())

    @property
    def lost_a_stub(self) -> bool:
        """Whether the load may have failed for that alone."""
        return self.died < math.inf

    @property
    def hangs(self) -> bool:
        """Whether it still loads long after a stub of it died."""
        return time.monotonic() > self.died + HANG_S and not self.outcome.done()


def tag_of(digest: str) -> str:
    """The ending of the names of a version's parts."""
    return f"@{digest.removeprefix('sha256:')[:12]}"
