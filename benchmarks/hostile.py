"""The effect of hostile and odd requests on the service; writes docs/security-tests.md.

    python -m benchmarks.hostile [--clients 16] [--times 4] [--page docs/security-tests.md]

Starts `referent serve` with its default limits. The clients send the corpus of tests/support several times, shuffled
and without pause, while /livez is polled. They are processes of the lowest priority, since they represent other
machines. Memory is the most that the service's process held, and that it held together with the processes that it
starts for pictures.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Event, Process, Queue
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.lib.measuring import Report, Row, arguments_of, markdown, summary
from benchmarks.lib.service import serve
from benchmarks.livez import poll
from tests.support.hostile import CORPUS, GOLDEN
from tests.support.hostile_images import Input, heavy

PROCESSES = 4
POLL_S = 0.05
MEMORY_GOAL_MB, LIVEZ_GOAL_MS = 700, 100
NO_ANSWER = 0

Outcome = tuple[str, int, str]  # kind, status, what a problem of the 5xx says


def ask(client: httpx.Client, entry: Input) -> tuple[int, str]:
    """The status of the answer, and the type of its problem; `NO_ANSWER` if the connection broke."""
    headers = {name: value.encode("latin-1") for name, value in entry.all_headers.items()}
    try:
        response = client.post(entry.path, content=entry.body, headers=headers)
        problem = response.json().get("type", "") if response.status_code >= 500 else ""
        return response.status_code, problem.rpartition(":")[2]
    except httpx.LocalProtocolError:  # this client sends no such header
        return -1, ""
    except httpx.TransportError as error:
        return NO_ANSWER, f"{type(error).__name__} after {entry.name}"


def run(url: str, shares: list[list[Input]], outcomes: Any) -> None:
    """A client for each share, in a thread."""
    os.nice(19)

    def one(share: list[Input]) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            for entry in share:
                outcomes.put((entry.kind, *ask(client, entry)))

    threads = [threading.Thread(target=one, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes.put(None)


@contextmanager
def weighed(pid: int) -> Iterator[dict[str, float]]:
    """The most memory, MB, of a process, and of it with the processes that it started, without Triton."""
    process, peak, ended = psutil.Process(pid), {"process": 0.0, "together": 0.0}, threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            with suppress(psutil.Error):
                family = [process, *process.children(recursive=True)]
                sizes = [each.memory_info().rss for each in family if not each.name().startswith("triton")]
                peak["together"] = max(peak["together"], sum(sizes) / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield peak
    ended.set()
    watcher.join()
    status = Path(f"/proc/{pid}/status").read_text()
    peak["process"] = next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if "VmHWM" in line)


def watch(url: str, ended: Any, times: Any) -> None:
    """Polls /livez until the end, then puts all milliseconds."""
    found: list[float] = []
    while not ended.is_set():
        found += poll(url, 1)
    times.put(found)


def collect(url: str, clients: int, inputs: list[Input]) -> tuple[list[Outcome], list[float]]:
    """The result of each request, and the milliseconds of /livez meanwhile."""
    outcomes: Any = Queue()
    shares = [inputs[first::clients] for first in range(clients)]
    senders = [Process(target=run, args=(url, shares[first::PROCESSES], outcomes)) for first in range(PROCESSES)]
    for sender in senders:
        sender.start()
    found: list[Outcome] = []
    times: Any = Queue()
    ended = Event()
    watcher = Process(target=watch, args=(url, ended, times))  # what else is measured here must not delay it
    watcher.start()
    left = len(senders)
    while left:
        outcome = outcomes.get()
        left -= outcome is None
        if outcome:
            found.append(outcome)
    ended.set()
    measured = times.get()
    for process in (watcher, *senders):
        process.join()
    return found, measured


def rows_of(found: list[Outcome], corpus: list[Input]) -> list[Row]:
    """A row for each kind of request."""
    rows: list[Row] = []
    for kind in dict.fromkeys(entry.kind for entry in corpus):
        statuses = Counter(status for each, status, _ in found if each == kind)
        rows.append(
            {
                "kind": kind,
                "inputs": sum(entry.kind == kind for entry in corpus),
                "requests": sum(statuses.values()) - statuses[-1],
                "answered (2xx)": sum(count for status, count in statuses.items() if 200 <= status < 300),
                "refused (4xx)": sum(count for status, count in statuses.items() if 400 <= status < 500),
                "503, 504": statuses[503] + statuses[504],
                "other 5xx": sum(n for status, n in statuses.items() if status >= 500 and status not in (503, 504)),
                "no answer": statuses[NO_ANSWER],
            }
        )
    total: Row = {"kind": "**all**"}
    total |= {name: sum(row[name] for row in rows) for name in rows[0] if name != "kind"}
    return [*rows, total]


def figure(what: str, value: float, goal: float | None = None) -> Row:
    return {
        "what": what,
        "measured": value,
        "goal": goal,
        "met": None if goal is None else "yes" if value <= goal else "no",
    }


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--times", type=int, default=4, help="that each input is sent")
    parser.add_argument("--page", type=Path, default=Path("docs/security-tests.md"))
    arguments = parser.parse_args()
    corpus = [*CORPUS, *(entry._replace(kind="heavy") for entry in heavy())]
    inputs = random.Random(0).sample(corpus * arguments.times, len(corpus) * arguments.times)
    report = Report("hostile", arguments.out)
    start = time.monotonic()
    with serve() as served, weighed(served.process.pid) as peak:
        found, times = collect(served.url, arguments.clients, inputs)
        whole = httpx.post(f"{served.url}/v1/ground", json=GOLDEN, timeout=60).status_code == 200
    seconds = time.monotonic() - start
    livez = summary(times)
    report.add("requests", rows_of(found, corpus))
    reasons = Counter((status, reason) for _, status, reason in found if reason)
    figures = [
        figure("memory of the service's process, peak (VmHWM), MB", peak["process"], MEMORY_GOAL_MB),
        figure("with the processes that it starts for pictures, highest sample, MB", peak["together"]),
        figure(f"/livez, median of {len(times)}, ms", livez["p50"]),
        figure("/livez, p99, ms", livez["p99"], LIVEZ_GOAL_MS),
        figure("/livez, worst, ms", livez["max"], LIVEZ_GOAL_MS),
    ]
    report.add("figures", figures)
    said = ", ".join(
        f"{count} of {status or 'no answer'} {reason}" for (status, reason), count in reasons.most_common()
    )
    arguments.page.write_text(
        PAGE.format(
            environment="\n".join(f"- {name}: {value}" for name, value in report.environment.items()),
            inputs=len(corpus),
            clients=arguments.clients,
            times=arguments.times,
            seconds=seconds,
            rows=markdown(rows_of(found, corpus)),
            figures=markdown(figures),
            reasons=said or "none",
            whole="answers as before" if whole else "DOES NOT ANSWER",
        )
    )


PAGE = """# Security tests

`python -m benchmarks.hostile` wrote this page. It starts `referent serve` with its default limits, and {clients}
clients send {inputs} hostile and odd inputs {times} times, shuffled and without pause. The inputs are made by
`tests/support/hostile.py` and `tests/support/hostile_images.py`; `tests/gateway/test_hostile.py` asserts the answer
to each but the heavy ones, which are as large as the limits allow. What connections do (bodies that drip, answers that
nobody reads, heads without end, floods of connections, a drain under load) is in `tests/gateway/test_connections.py`
and `tests/core/test_fetch.py`.

{environment}
- took: {seconds:.0f} s; service, clients and Triton share the cores, and so does what made the load before

{rows}

Answers of the 5xx, and requests without an answer: {reasons}. Afterwards the service {whole}.

{figures}
"""


if __name__ == "__main__":
    main()
