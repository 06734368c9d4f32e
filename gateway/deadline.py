"""The time that a request has: one budget through body, queue, decoding and inference."""

import asyncio


class DeadlineError(TimeoutError):
    """The request's time ran out in `stage`."""

    def __init__(self, stage: str, deadline_s: float) -> None:
        super().__init__(f"the request was still in {stage} after {deadline_s:g} s")
        self.stage = stage


class SlowBodyError(DeadlineError):
    """The request's body did not arrive in time."""


class Deadline:
    """Ends `seconds` from now; make it in the event loop."""

    def __init__(self, seconds: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self.seconds, self._end = seconds, self._clock() + seconds

    def left_s(self) -> float:
        """What remains of it; negative once it is over."""
        return self._end - self._clock()
