"""Where the time of a request goes."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from referent.core.api import Timings


class StageClock:
    """Times stages, one after another; `stage` is the current one. `on_end` gets each stage's name and seconds."""

    def __init__(self, stage: str, on_end: Callable[[str, float], None] = lambda stage, seconds: None) -> None:
        self.stage, self._on_end = stage, on_end
        self._start = self._entered = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)  # a stage can run twice

    def enter(self, stage: str) -> None:
        """Ends the current stage and begins this one; any thread may call it."""
        if stage == self.stage:
            return
        now = time.perf_counter()
        seconds, self._entered = now - self._entered, now
        self._seconds[self.stage] += seconds
        self._on_end(self.stage, seconds)
        self.stage = stage

    def parts(self, milliseconds: Mapping[str, float]) -> None:
        """Adds the times of parts of a stage that is over, by their names."""
        for stage, ms in milliseconds.items():
            self._seconds[stage] += ms / 1000
            self._on_end(stage, ms / 1000)

    def timings(self) -> Timings:
        """Ends the last stage; the milliseconds of all."""
        self.enter("")
        total = self._entered - self._start
        return Timings(
            **{name: round(seconds * 1000, 3) for name, seconds in {**self._seconds, "total": total}.items()}
        )
