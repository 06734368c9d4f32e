"""Faults under load on the real processes: every request is answered, rightly or with a problem to try again; none is
lost, and the service comes back by itself."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.publish import republish
from referent.core.bundle import latest_version
from runtime.launcher import TritonServer
from tests.support.load import EXPRESSION, IMAGE, gateway, is_ready, load, parts_of, process_of, until
from tests.support.tiny import copy_mini


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since tests publish into it."""
    return copy_mini(tmp_path_factory.mktemp("served") / "model_repository")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, grpc_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: TritonServer, repository: Path) -> Iterator[str]:
    with gateway(repository, server.grpc_url) as url:
        yield url


def stub_of(server: TritonServer, step: str) -> psutil.Process | None:
    """The Python process that runs a part of mini, if one does."""
    for child in process_of(server).children():
        with suppress(psutil.NoSuchProcess):  # it ended while we looked
            if child.status() != psutil.STATUS_ZOMBIE and f"mini_{step}" in " ".join(child.cmdline()):
                return child
    return None


def test_killed_stub_costs_a_retry_at_most(server: TritonServer, url: str) -> None:
    with load(url) as noted:
        killed = stub_of(server, "language_model")
        assert killed
        killed.kill()
        until(lambda: stub_of(server, "language_model") not in (None, killed))
        until(lambda: is_ready(url))
        noted.more_ok()
    assert noted.counts["lost"] == 0


def test_killed_server_costs_a_retry_at_most(server: TritonServer, url: str) -> None:
    with load(url) as noted:
        process_of(server).kill()
        until(lambda: not is_ready(url))
        until(lambda: is_ready(url))
        noted.more_ok()
    assert noted.counts["lost"] == 0
    assert noted.counts["retryable"]


def test_killed_server_of_two_costs_nothing(server: TritonServer, repository: Path) -> None:
    with (
        TritonServer(repository, grpc_port=0) as other,
        gateway(repository, f"{server.grpc_url},{other.grpc_url}") as url,
    ):
        with load(url, clients=24) as noted:
            process_of(other).kill()
            noted.more_ok(20)
        assert (noted.counts["lost"], noted.counts["retryable"]) == (0, 0)


def test_frozen_server_and_full_budget_answer_in_time(server: TritonServer, repository: Path) -> None:
    limits = {"max_inflight_requests": 3, "deadline_s": 5}
    with gateway(repository, server.grpc_url, **limits) as url, load(url, clients=6) as noted:
        process_of(server).suspend()
        try:
            until(lambda: any("504" in detail for detail in list(noted.details)))
            assert httpx.get(f"{url}/livez", timeout=1).status_code == 200
        finally:
            process_of(server).resume()
        until(lambda: is_ready(url))
        noted.more_ok()
    assert noted.counts["lost"] == 0
    assert any("overloaded" in detail for detail in noted.details)


def triton_metric(server: TritonServer, name: str, model: str, **labels: str) -> float:
    """Triton's own count, over the versions of a model."""
    sought = {"model": model, **labels}
    families = text_string_to_metric_families(httpx.get(server.metrics_url).text)
    samples = [sample for family in families if family.name == name for sample in family.samples]
    return sum(sample.value for sample in samples if sought.items() <= sample.labels.items())


def test_work_of_clients_that_left_is_not_done(repository: Path, tmp_path: Path) -> None:
    """Clients leave while the vision encoder waits for its batch to fill: Triton ends their requests there, and the
    language model works for those who stay alone."""

    async def ask_and_leave(url: str) -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:

            def asking(count: int) -> list["asyncio.Task[httpx.Response]"]:
                body = {"files": {"image": IMAGE}, "data": {"expression": EXPRESSION}}
                return [asyncio.create_task(client.post("/v1/ground", **body)) for _ in range(count)]

            leaving = asking(batch - 1)
            await asyncio.to_thread(until, lambda: waiting() == batch - 1)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            await asyncio.to_thread(until, lambda: not REGISTRY.get_sample_value("referent_inflight_requests"))
            return [response.status_code for response in await asyncio.gather(*asking(batch))]

    def wait_for_a_batch(config: ModelConfig) -> None:
        if config.name == "mini_vision_encoder":
            config.dynamic_batching.max_queue_delay_microseconds = 5_000_000

    patient = tmp_path / "patient"
    republish(repository, "mini", latest_version(repository, "mini"), patient, wait_for_a_batch)
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(patient))  # its own, since every request counts
        client = stack.enter_context(InferenceServerClient(server.grpc_url))
        vision, language, _ = parts_of(client, "mini")
        waiting = partial(triton_metric, server, "nv_inference_pending_request_count", vision)
        cancelled = partial(triton_metric, server, "nv_inference_request_failure", language, reason="CANCELED")
        done = partial(triton_metric, server, "nv_inference_request_success", language)
        once = {"deadline_s": 60, "readiness_interval_s": 3600}  # no golden inference after the first
        url = stack.enter_context(gateway(patient, server.grpc_url, **once))
        batch = client.get_model_config(vision).config.max_batch_size
        before = done(), cancelled()
        assert asyncio.run(ask_and_leave(url)) == [200] * batch
        assert done() - before[0] == batch  # of those who stayed
        assert cancelled() > before[1]


@contextmanager
def process(command: list[str], **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that says where it serves, and that URL."""
    env = os.environ | {"REFERENT_METRICS_PORT": "0", "REFERENT_PORT": "0", **environment}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        assert started.stdout
        lines = (line for line in started.stdout if "ready" in line)
        url = next(match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
        output = started.stdout
        drain = threading.Thread(target=lambda: print(output.read()))  # or a full pipe would stop it
        drain.start()
        try:
            yield started, url
        finally:
            started.kill()
            drain.join()


def test_sigterm_under_load_loses_nothing(server: TritonServer, repository: Path) -> None:
    settings = {"REFERENT_TRITON_URL": server.grpc_url, "REFERENT_MODEL_REPOSITORY": str(repository)}
    with process([sys.executable, "-m", "gateway"], **settings, REFERENT_DRAIN_GRACE_S="600") as (draining, url):
        with load(url) as noted:
            draining.terminate()
            until(lambda: not is_ready(url))
            noted.more_ok()
        draining.terminate()  # the grace period is over
        assert draining.wait(60) == 0
    assert (noted.counts["lost"], noted.counts["retryable"]) == (0, 0)


def may_mount() -> bool:
    return (
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True).returncode
        == 0
    )


@pytest.mark.skipif(not may_mount(), reason="may not mount a /dev/shm of its own")
def test_full_shared_memory_costs_retries_until_there_is_room(repository: Path) -> None:
    program = "from referent.commands.app import app; app()"
    serve = [sys.executable, "-c", program, "serve", "--grpc-port", "0", "--model-repository", str(repository)]
    mount = 'mount -t tmpfs -o size=48m tmpfs /dev/shm && exec "$@"'
    with process(["unshare", "-m", "sh", "-c", mount, "sh", *serve]) as (serving, url), load(url) as noted:
        filler = Path(f"/proc/{serving.pid}/root/dev/shm/filler")
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        for stub in psutil.Process(serving.pid).children(recursive=True):
            if stub.name() == "triton_python_backend_stub":
                stub.kill()  # healing it takes a new region
        until(lambda: noted.counts["retryable"] > 5)
        filler.unlink()
        until(lambda: is_ready(url))
        noted.more_ok()
    assert noted.counts["lost"] == 0
