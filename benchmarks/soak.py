"""A long run: checks that memory does not grow and that every answer is right.

    python -m benchmarks.soak [--requests 20000] [--clients 8]

Starts `referent serve` of its own and asks about pictures of many sizes with one to eight expressions. The first answer
to each of them is the expected one; any later answer that differs by over half a pixel is wrong. Every few seconds the
resident memory of the gateway (with the launcher), of tritonserver and of its stubs is sampled. Exits with 1 unless all
answers were right and no program's memory grew by over 5 % in the second half of the run.
"""

import io
import itertools
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import NamedTuple

import httpx
import numpy as np
from PIL import Image

from benchmarks.lib.measuring import Report, Row, arguments_of, lines
from benchmarks.lib.memory import memory_mb
from benchmarks.lib.service import EXPRESSIONS, PICTURE, serve

SIZES = [(64, 64), (200, 320), (640, 480), (1280, 720), (1500, 2000), (4000, 3000)]
SAMPLE_S = 5
GROWTH_PERCENT = 5
TOLERANCE_PIXELS = 0.5  # batches of other sizes add in another order


class SoakRequest(NamedTuple):
    """One request."""

    image: bytes
    expressions: list[str]


def cases() -> list[SoakRequest]:
    """All sizes with one, three and eight expressions."""
    picture, made = Image.open(PICTURE).convert("RGB"), []
    for (size, count), kind in zip(itertools.product(SIZES, (1, 3, 8)), itertools.cycle(("JPEG", "PNG", "WEBP"))):
        buffer = io.BytesIO()
        picture.resize(size).save(buffer, kind if max(size) < 1000 else "JPEG")
        made.append(SoakRequest(buffer.getvalue(), EXPRESSIONS[:count]))
    return made


def growth(samples: list[Row], requests: int) -> dict[str, float]:
    """Percent by which each program's memory, the median, is larger in the last quarter than in the one before:
    batches of all sizes have come by then."""
    quarters: defaultdict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for sample in samples:
        if sample["requests"] >= requests / 2:
            quarters[sample["program"]][sample["requests"] >= requests * 3 / 4].append(sample["resident MB"])
    return {
        program: 100 * (median(last) / median(before) - 1)
        for program, (before, last) in quarters.items()
        if before and last
    }


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    report = Report("soak", arguments.out)
    made = cases()
    outcomes: Counter[str] = Counter()
    samples: list[Row] = []
    lock, done = threading.Lock(), threading.Event()
    choices = random.Random(0).choices(range(len(made)), k=arguments.requests)
    with serve() as served, httpx.Client(base_url=served.url, timeout=60) as client:

        def ask(index: int) -> np.ndarray:
            case = made[index]
            response = client.post("/v1/ground", files={"image": case.image}, data={"expression": case.expressions})
            return np.array([found["box_xyxy"] for found in response.raise_for_status().json()["results"]])

        expected = [ask(index) for index in range(len(made))]

        def check(index: int) -> None:
            try:
                right = bool((np.abs(ask(index) - expected[index]) <= TOLERANCE_PIXELS).all())
                outcome = "right" if right else "wrong"
            except httpx.HTTPError as error:
                outcome = type(error).__name__
            with lock:
                outcomes[outcome] += 1

        def sample() -> None:
            start = time.monotonic()
            while True:
                at = {"seconds": round(time.monotonic() - start), "requests": outcomes.total()}
                samples.extend(at | program for program in memory_mb({"gateway": served.process.pid}))
                print(at, dict(outcomes), flush=True)
                if done.is_set():  # so that there is one of the end
                    return
                done.wait(SAMPLE_S)

        sampler = threading.Thread(target=sample)
        sampler.start()
        with ThreadPoolExecutor(arguments.clients) as pool:
            for _ in pool.map(check, choices):
                pass
        done.set()
        sampler.join()
    report.add("answers", [{"requests": arguments.requests, "clients": arguments.clients, **outcomes}])
    report.add("memory", samples)
    grew = growth(samples, arguments.requests)
    report.add("growth in the second half", [{"program": program, "%": percent} for program, percent in grew.items()])
    report.chart(lambda axes: lines(axes, samples, "requests", "resident MB", "program"))
    sys.exit(0 if outcomes["right"] == arguments.requests and max(grew.values(), default=0) <= GROWTH_PERCENT else 1)


if __name__ == "__main__":
    main()
