"""Load on an HTTP service: a closed loop of clients that wait for their answers, or an open loop of arrivals.

A closed loop finds the highest rate of a service; its clients slow down with it, so it hides queues. An open loop with
Poisson arrivals is like production.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp
import numpy as np

from benchmarks.lib.service import Body

WARM_UP_S = 1.0
TIMEOUT = aiohttp.ClientTimeout(total=60)


class TimedAnswer(NamedTuple):
    """When a request was due (seconds into the run, negative in the warm-up), how long it took from then, and its
    status; 0: no answer."""

    due_s: float
    ms: float
    status: int


@dataclass(frozen=True)
class Load:
    """A run of `seconds`, and the answers to all that was sent, in the warm-up before it too.

    Rates count the answers that came within the run: requests still in a queue are not done. Statuses and times are of
    the requests that were due in the run, whenever their answers came.
    """

    seconds: float
    answers: list[TimedAnswer]

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers if answer.due_s >= 0)

    @property
    def failed(self) -> int:
        """Answers that are not 200, or did not come."""
        return self.statuses.total() - self.statuses[200]

    @property
    def per_s(self) -> float:
        """Answers with 200, a second."""
        return self.goodput(math.inf)

    def goodput(self, objective_ms: float) -> float:
        """Answers with 200 in time, a second."""
        good = [answer for answer in self.answers if answer.status == 200 and answer.ms <= objective_ms]
        return sum(0 <= answer.due_s + answer.ms / 1000 <= self.seconds for answer in good) / self.seconds

    def percentile(self, percent: int) -> float | None:
        """Milliseconds of requests answered with 200; None if there are none."""
        times = [answer.ms for answer in self.answers if answer.status == 200 and answer.due_s >= 0]
        return float(np.percentile(times, percent)) if times else None

    def times(self) -> dict[str, float | None]:
        """Columns of a table."""
        return {f"p{percent} ms": self.percentile(percent) for percent in (50, 95, 99)}


def closed(url: str, bodies: Sequence[Body], clients: int, seconds: float, warm_up_s: float = WARM_UP_S) -> Load:
    """`clients` each send their next request when they have the answer to the one before.

    The run is from the end of the warm-up to the last answer of what was sent in `seconds`.
    """

    async def run() -> Load:
        answers: list[TimedAnswer] = []
        async with _session() as session:
            start = time.perf_counter() + warm_up_s
            end = start + seconds

            async def one(number: int) -> None:
                turn = number
                while (now := time.perf_counter()) < end:
                    answer = await _ask(session, url, bodies[turn % len(bodies)], now)
                    answers.append(answer._replace(due_s=now - start))
                    turn += clients

            await asyncio.gather(*[one(number) for number in range(clients)])
            return Load(time.perf_counter() - start, answers)

    return asyncio.run(run())


def opened(url: str, bodies: Sequence[Body], rate: float, seconds: float, seed: int = 0) -> Load:
    """`rate` requests a second on average, at random moments, however many are unanswered.

    Times count from the moment at which a request was due, so a client that falls behind doesn't hide it.
    """

    async def run() -> Load:
        generator = random.Random(seed)
        due, dues = generator.expovariate(rate) - WARM_UP_S, []
        while due < seconds:
            dues.append(due)
            due += generator.expovariate(rate)
        async with _session() as session:
            start = time.perf_counter() + WARM_UP_S

            async def one(number: int, due: float) -> TimedAnswer:
                answer = await _ask(session, url, bodies[number % len(bodies)], start + due)
                return answer._replace(due_s=due)

            tasks = []
            for number, due in enumerate(dues):
                await asyncio.sleep(start + due - time.perf_counter())
                tasks.append(asyncio.create_task(one(number, due)))
            answers = await asyncio.gather(*tasks)
        return Load(seconds, answers)

    return asyncio.run(run())


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT)


async def _ask(session: aiohttp.ClientSession, url: str, body: Body, due: float) -> TimedAnswer:
    try:
        async with session.post(f"{url}/v1/ground", data=body.content, headers=body.headers) as response:
            await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    return TimedAnswer(0, 1000 * (time.perf_counter() - due), status)
