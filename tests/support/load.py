"""A gateway in a thread of its own, and clients that ask it without pause."""

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import uvicorn
from tritonclient.grpc import InferenceServerClient

from gateway.app import create_app
from gateway.server import listen, url_of
from gateway.settings import Settings
from runtime.launcher import TritonServer

SAMPLES = Path(__file__).parents[1] / "samples"
CASE = json.loads((SAMPLES / "samples.json").read_text())[0]
IMAGE, EXPRESSION = (SAMPLES / CASE["image"]).read_bytes(), next(iter(CASE["objects"]))
DEADLINE_S = 10


@contextmanager
def gateway(repository: Path, triton_url: str, **changes: object) -> Iterator[str]:
    """The gateway on a port of its own, once it is ready."""
    ready = threading.Event()
    defaults = {
        "triton_url": triton_url,
        "model_repository": repository,
        "default_model": "mini",
        "port": 0,
        "metrics_port": 0,
    }
    limits = {"deadline_s": DEADLINE_S, "readiness_interval_s": 0.5}
    settings = Settings(**{**defaults, **limits, **changes})
    runner = uvicorn.Server(uvicorn.Config(create_app(settings, ready.set), log_level="warning"))
    with listen(settings) as listener:
        thread = threading.Thread(target=runner.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(60)
            yield url_of(listener)
        finally:
            runner.should_exit = True
            thread.join()


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def ask(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/ground", files={"image": IMAGE}, data={"expression": EXPRESSION})


@dataclasses.dataclass
class Load:
    """What became of requests: `counts` of ok, retryable and lost; `details` of the latter two, and versions served."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    details: Counter[str] = dataclasses.field(default_factory=Counter)

    def note(self, response: httpx.Response, box_xyxy: list[float]) -> bool:
        """Returns whether all is well."""
        answer = response.json()
        if response.status_code == 200 and np.allclose(answer["results"][0]["box_xyxy"], box_xyxy, atol=0.1):
            self.counts["ok"] += 1
            self.details[f"version {answer['version']}"] += 1
        else:
            again = (
                response.status_code in (429, 503, 504) and answer["retryable"] and "retry-after" in response.headers
            )
            self.counts["retryable" if again else "lost"] += 1
            self.details[f"{response.status_code} {answer.get('type')} {answer.get('detail')}"] += 1
        return response.status_code == 200

    def more_ok(self, count: int = 3) -> None:
        """Returns when so many more requests were answered."""
        until(partial(lambda goal: self.counts["ok"] >= goal, self.counts["ok"] + count))


@contextmanager
def load(url: str, clients: int = 3) -> Iterator[Load]:
    """Clients that ask without pause; leaving waits for their last answers and prints what became of all."""
    until(lambda: is_ready(url))
    noted, stop = Load(), threading.Event()
    with httpx.Client(base_url=url, timeout=30) as client:
        box_xyxy = ask(client).raise_for_status().json()["results"][0]["box_xyxy"]

    def run() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                try:
                    if not noted.note(ask(client), box_xyxy):
                        stop.wait(0.1)  # a client that tries again at once would be the load itself
                except httpx.HTTPError as error:
                    noted.counts["lost"] += 1
                    noted.details[repr(error)] += 1

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        noted.more_ok()
        yield noted
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        print(dict(noted.counts), dict(noted.details))


def parts_of(client: InferenceServerClient, name: str) -> list[str]:
    """What Triton calls the parts of a model: the launcher's have a tag of their version."""
    return [step.model_name for step in client.get_model_config(name).config.ensemble_scheduling.step]


def process_of(server: TritonServer) -> psutil.Process:
    return psutil.Process(server._process.pid)


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz").status_code == 200
