"""Whether the event loop stays free: /livez is polled while clients send large photographs.

    python -m benchmarks.livez [--clients 64] [--seconds 20]

Needs a running `referent serve`. The clients are separate processes, a few with many connections each, of the lowest
priority, since they represent other machines; Triton still uses the same cores.
"""

import asyncio
import io
import os
import time
from collections import Counter
from multiprocessing import Event, Process, Queue
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.lib.measuring import Report, Row, arguments_of, bars, summary

PROCESSES = 2
POLL_S = 0.02


def photograph() -> bytes:
    """A JPEG of 12 megapixels that is as expensive to decode as a photograph: smooth with some noise."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).resize(
        (4000, 3000), Image.Resampling.BICUBIC
    )
    noise = random.integers(-12, 13, (3000, 4000, 1), np.int16)
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def send(url: str, connections: int, data: bytes, stop: Any, answered: Any) -> None:
    """Sends the photograph over so many connections without pause, until told to stop; reports statuses."""
    os.nice(19)  # clients are elsewhere: here they take what the service leaves
    statuses: Counter[int] = Counter()

    async def run() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:

            async def one() -> None:
                while not stop.is_set():
                    body = {"files": {"image": data}, "data": {"expression": "the truck"}}
                    statuses[(await client.post("/v1/ground", **body)).status_code] += 1

            await asyncio.gather(*[one() for _ in range(connections)])

    try:
        asyncio.run(run())
    finally:
        answered.put(statuses)


def poll(url: str, seconds: float) -> list[float]:
    """Milliseconds of each /livez."""
    times, end = [], time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=60) as client:
        client.get("/livez")
        while time.monotonic() < end:
            start = time.perf_counter()
            client.get("/livez").raise_for_status()
            times.append(1000 * (time.perf_counter() - start))
            time.sleep(POLL_S)
    return times


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    data = photograph()
    report, rows = Report("livez", arguments.out), list[Row]()

    def look(when: str, seconds: float) -> None:
        times = poll(arguments.url, seconds)
        rows.append({"/livez": when, "polls": len(times)} | summary(times))

    look("alone", arguments.seconds / 4)
    stop = Event()
    answered: Any = Queue()
    share = arguments.clients // PROCESSES
    senders = [Process(target=send, args=(arguments.url, share, data, stop, answered)) for _ in range(PROCESSES)]
    for sender in senders:
        sender.start()
    try:
        look(f"with {arguments.clients} clients", arguments.seconds)
    finally:
        stop.set()
    statuses: Counter[int] = sum((answered.get() for _ in senders), Counter())
    for sender in senders:
        sender.join()
    report.add(f"milliseconds; a photograph has {len(data) / 1e6:.1f} MB", rows)
    report.add("photographs meanwhile", [{"status": status, "answers": count} for status, count in statuses.items()])
    report.chart(lambda axes: bars(axes, {row["/livez"]: row["p99"] for row in rows}, "p99 of /livez, ms"))


if __name__ == "__main__":
    main()
