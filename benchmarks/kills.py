"""Kills a process every 20 seconds, and checks that every request is answered correctly.

    python -m benchmarks.kills [--requests 100000] [--clients 16] [--tiny] [--resume]

Starts a Triton as in production, two gateways and a balancer, and asks with the SDK and its default retries. In turn, a
stub and tritonserver get SIGKILL and one of the gateways gets SIGTERM; the gateway is started again once it has ended.
A request is lost if the SDK raises an error, and wrong if a box differs by over half a pixel from the first answer to
the same question. Exits with 1 if any was lost or wrong, or if a program's memory grew by over 5 % in the second half
of the run. An interrupted run (Ctrl-C, SIGTERM) prints how far it got; `--resume` continues counting from there.
`--tiny` serves, instead of mini, a model that computes almost nothing; its boxes depend on picture and expression.
"""

import asyncio
import io
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.lib.measuring import Report, Row, arguments_of, lines
from benchmarks.lib.memory import memory_mb
from benchmarks.lib.service import REPOSITORY
from benchmarks.soak import GROWTH_PERCENT, SAMPLE_S, TOLERANCE_PIXELS, SoakRequest, growth
from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.client.http import Client
from runtime.launcher import free_port
from tests.support.releases import publish_tiny, write_graph

BOX_HEAD = """(float[B, N, 4] hidden_states) => (float[B, N, 4] boxes, float[B, N] scores) {
    swings = Sin (hidden_states)
    widths = Constant <value = float[4] {0.25, 0.25, 0.0, 0.0}> ()
    swung = Mul (swings, widths)
    middle = Constant <value = float[4] {0.5, 0.5, 0.5, 0.5}> ()
    boxes = Add (swung, middle)
    last = Constant <value = int64[1] {2}> ()
    scores = ReduceMax <keepdims = 0> (boxes, last)
}"""
SAMPLES = Path("tests/samples")
SIDE = 160  # pixels of the pictures: decoding is no matter here
LOOK_S = 0.5  # between two looks at what is ready, as a load balancer's


def cases() -> list[SoakRequest]:
    """Each object of the sample pictures, and for each picture three at once."""
    made = []
    for sample in json.loads((SAMPLES / "samples.json").read_text()):
        buffer = io.BytesIO()
        Image.open(SAMPLES / sample["image"]).convert("RGB").resize((SIDE, SIDE)).save(buffer, "JPEG")
        objects = list(sample["objects"])
        made += [SoakRequest(buffer.getvalue(), asked) for asked in (*([name] for name in objects), objects[:3])]
    return made


class Service:
    """Triton with its launcher, two gateways, and a balancer that divides connections among the ready ones."""

    def __init__(self, repository: Path, model: str, stack: ExitStack) -> None:
        self._repository, self._model, self._stack = repository, model, stack
        command = [sys.executable, "-m", "runtime", str(repository), "--model", model, "--grpc-port", "0"]
        self.launcher = subprocess.Popen(
            [*command, "--metrics-port", "0"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        stack.callback(_end, self.launcher)
        assert self.launcher.stderr
        found = (re.search(r"serving .* at (\S+), metrics at", line) for line in self.launcher.stderr)
        ready = next(filter(None, found), None)
        if not ready:
            raise RuntimeError(f"`{' '.join(command)}` ended before it was ready: run it to see why")
        threading.Thread(target=self.launcher.stderr.read, daemon=True).start()  # or the pipe is full some day
        self._triton_url = ready[1]
        self.ports = [free_port() for _ in range(2)]
        self.gateways = [self._start_gateway(port) for port in self.ports]
        self.ready: list[int] = []  # of the ports
        self.url = stack.enter_context(balance(self.ports, self.ready))

    def kill(self, kind: str) -> None:
        """Returns when the process is gone and a gateway that ended was started again."""
        if kind == "gateway":
            self.gateways[1].terminate()
            self.gateways[1].wait()
            self.gateways[1] = self._start_gateway(self.ports[1])
            return
        [server] = psutil.Process(self.launcher.pid).children()
        stubs = [child for child in server.children() if child.status() != psutil.STATUS_ZOMBIE]
        with suppress(psutil.NoSuchProcess, IndexError):  # it is being started again
            (server if kind == "server" else stubs[int(time.monotonic()) % len(stubs)]).kill()

    def memory_mb(self) -> list[Row]:
        """Resident memory by program."""
        named: dict[str, subprocess.Popen[Any]] = {
            "launcher": self.launcher,
            "gateway": self.gateways[0],
            "gateway that is ended": self.gateways[1],
        }
        return memory_mb({name: started.pid for name, started in named.items()})

    def _start_gateway(self, port: int) -> subprocess.Popen[bytes]:
        settings = {
            "REFERENT_PORT": str(port),
            "REFERENT_METRICS_PORT": "0",
            "REFERENT_TRITON_URL": self._triton_url,
            "REFERENT_MODEL_REPOSITORY": str(self._repository),
            "REFERENT_MODELS": self._model,
            "REFERENT_DEFAULT_MODEL": self._model,
        }
        started = subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stack.callback(_end, started)
        return started


@contextmanager
def balance(ports: list[int], ready: list[int]) -> Iterator[str]:
    """Passes each connection to one of the gateways that are ready, in turn; the value is the URL. `ready` is kept to
    be the ports of those."""
    turns = itertools.count()
    loop, listening = asyncio.new_event_loop(), socket.create_server(("127.0.0.1", 0), backlog=1024)

    async def look() -> None:
        async with httpx.AsyncClient(timeout=2) as client:

            async def is_ready(port: int) -> bool:
                with suppress(httpx.HTTPError):
                    return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
                return False

            while True:
                up = await asyncio.gather(*map(is_ready, ports))
                ready[:] = itertools.compress(ports, up)
                await asyncio.sleep(LOOK_S)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in ports:
            if ready:
                with suppress(OSError):
                    upstream = await asyncio.open_connection("127.0.0.1", ready[next(turns) % len(ready)])
                    await asyncio.gather(copy(reader, upstream[1]), copy(upstream[0], writer))
                    return
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(connect, sock=listening):
            await look()

    task = loop.create_task(run())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


class Retries(logging.Handler):
    """Counts how often the SDK asked again, which it logs."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("asking again")


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--interval", type=float, default=20, help="seconds between kills (default: 20)")
    parser.add_argument("--tiny", action="store_true", help="a model that costs next to nothing, for a busy machine")
    parser.add_argument("--resume", action="store_true", help="count on from where the run before was interrupted")
    arguments = parser.parse_args()
    report = Report("kills", arguments.out)
    reached = arguments.out / "kills-reached.json"
    before = json.loads(reached.read_text()) if arguments.resume else {"counts": {}, "samples": []}
    counts, samples = Counter[str](before["counts"]), list[Row](before["samples"])
    lock, done, retries = threading.Lock(), threading.Event(), Retries()
    logging.getLogger("referent.client.http").addHandler(retries)
    logging.getLogger("referent.client.http").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    made = cases()
    left = iter(range(arguments.requests - asked(counts)))
    with ExitStack() as stack:
        repository, model = REPOSITORY, "mini"
        if arguments.tiny:
            repository, model = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "models", "tiny"
            publish_tiny(repository, edit=lambda parts: write_graph(parts / "box_head/model.onnx", BOX_HEAD))
        service = Service(repository, model, stack)
        _until(lambda: len(service.ready) == len(service.ports))
        client = stack.enter_context(Client(service.url))

        def boxes(case: SoakRequest) -> np.ndarray:
            return np.array([found.box_xyxy for found in client.ground(case.image, case.expressions).results])

        expected = [boxes(case) for case in made]

        def ask() -> None:
            while not done.is_set():
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                index = number % len(made)
                try:
                    right = bool((np.abs(boxes(made[index]) - expected[index]) <= TOLERANCE_PIXELS).all())
                    outcome = "right" if right else "wrong"
                except (ServiceError, ServiceUnreachableError) as error:
                    outcome = "lost"
                    print("lost:", error, flush=True)
                with lock:
                    counts[outcome] += 1

        def kill() -> None:
            for kind in itertools.cycle(("stub", "server", "gateway")):
                if done.wait(arguments.interval):
                    return
                while not (service.ready or done.is_set()):  # still ill from the one before
                    done.wait(LOOK_S)
                service.kill(kind)
                counts[f"kills: {kind}"] += 1

        def sample() -> None:
            start, earlier_s = time.monotonic(), counts["seconds"]
            while not done.wait(SAMPLE_S):
                counts["asked again"] += retries.count
                retries.count = 0
                counts["seconds"] = earlier_s + round(time.monotonic() - start)
                at = {"seconds": counts["seconds"], "requests": asked(counts)}
                samples.extend(at | program for program in service.memory_mb())
                reached.write_text(json.dumps({"counts": counts, "samples": samples}))
                print(dict(counts), flush=True)

        beside = [threading.Thread(target=each) for each in (kill, sample)]
        for thread in beside:
            thread.start()
        with ThreadPoolExecutor(arguments.clients) as pool:
            try:
                for ended in [pool.submit(ask) for _ in range(arguments.clients)]:
                    ended.result()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            finally:
                done.set()
        for thread in beside:
            thread.join()
    row = {"requests": asked(counts), "clients": arguments.clients, "questions": len(made), **counts}
    report.add("answers", [row | {"different answers": len({answer.tobytes() for answer in expected})}])
    report.add("memory, the median of each tenth of the run", _by_tenths(samples, asked(counts)))
    grew = growth(samples, asked(counts))
    report.add("growth in the second half", [{"program": program, "%": percent} for program, percent in grew.items()])
    report.chart(lambda axes: lines(axes, samples, "requests", "resident MB", "program"))
    sys.exit(0 if counts["right"] == arguments.requests and max(grew.values(), default=0) <= GROWTH_PERCENT else 1)


def asked(counts: Counter[str]) -> int:
    """Requests that have come to an end."""
    return counts["right"] + counts["wrong"] + counts["lost"]


def _by_tenths(samples: list[Row], requests: int) -> list[Row]:
    """A row for each program, a column for each tenth of the requests: its resident MB there."""
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        tenth = f"{min(9, 10 * sample['requests'] // max(1, requests)) + 1}"
        found[sample["program"]][tenth].append(sample["resident MB"])
    return [{"program": name, **{tenth: median(sizes) for tenth, sizes in of.items()}} for name, of in found.items()]


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(LOOK_S)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    process.wait()


if __name__ == "__main__":
    main()
