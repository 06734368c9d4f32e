"""What a request may use: time for body, queue, decoding and inference together, and a share of the memory."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DeadlineError(TimeoutError):
    """The request's time ran out in `stage`."""

    def __init__(self, stage: str, deadline_s: float) -> None:
        super().__init__(
            f"the request was still in {stage} after {deadline_s:g} s: send a smaller image or fewer expressions"
        )
        self.stage = stage


class SlowBodyError(DeadlineError):
    """The request's body did not arrive in time."""


class Budget:
    """Ends `seconds` from now; create it in the event loop. `hold` reserves so many more bytes of the memory that
    requests share. `weigh` counts an image of the request as so many requests. Both last until the request ends, and
    raise `gateway.admission.OverloadedError` if too few are left."""

    def __init__(self, seconds: float, hold: Callable[[int], None], weigh: Callable[[int], None]) -> None:
        self._clock = asyncio.get_running_loop().time
        self.seconds, self._end = seconds, self._clock() + seconds
        self.hold, self.weigh = hold, weigh

    def left_s(self) -> float:
        """What remains of the time; negative once it is over."""
        return self._end - self._clock()


class Room:
    """A number of bytes of memory that images share while threads decode them."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int, until: float) -> Iterator[None]:
        """Waits until there is room; an image larger than the whole gets all of it. Raises TimeoutError at the time
        `until`, of `time.monotonic()`."""
        size = min(size, self._size)
        with self._changed:
            if not self._changed.wait_for(lambda: self._free >= size, until - time.monotonic()):
                raise TimeoutError
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
