"""What one request may use: a time for body, queue, decoding and inference together, and a share of the memory."""

import asyncio
from collections.abc import Callable


class DeadlineError(TimeoutError):
    """The request's time ran out in `stage`."""

    def __init__(self, stage: str, deadline_s: float) -> None:
        super().__init__(f"the request was still in {stage} after {deadline_s:g} s")
        self.stage = stage


class SlowBodyError(DeadlineError):
    """The request's body did not arrive in time."""


class Budget:
    """Ends `seconds` from now; make it in the event loop. `hold` takes so many more bytes of what all requests share,
    until the request ends; it raises `gateway.admission.OverloadedError` where they are not to be had."""

    def __init__(self, seconds: float, hold: Callable[[int], None]) -> None:
        self._clock = asyncio.get_running_loop().time
        self.seconds, self._end = seconds, self._clock() + seconds
        self.hold = hold

    def left_s(self) -> float:
        """What remains of the time; negative once it is over."""
        return self._end - self._clock()
