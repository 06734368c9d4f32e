"""Models that are stuck are replaced; those that have too much to do are left alone."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from referent.triton import liveness
from referent.triton.repository import Placement, build
from runtime.launcher import TritonServer
from tests.support.load import gateway, is_ready, load, process_of, until
from tests.support.plain_triton import PlainTriton
from tests.support.releases import publish_tiny, write_graph


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PATIENCE_S", 2)
    monkeypatch.setattr("runtime.health.INTERVAL_S", 0.2)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish_tiny(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        yield server


@pytest.fixture
def url(server: TritonServer, repository: Path) -> Iterator[str]:
    with gateway(repository, server.grpc_url, default_model="tiny", deadline_s=5, golden_timeout_s=2) as url:
        yield url


@pytest.mark.parametrize("part", ["vision_encoder", "box_head"])
def test_frozen_stub_is_replaced(server: TritonServer, url: str, part: str, caplog: pytest.LogCaptureFixture) -> None:
    [frozen] = [child for child in process_of(server).children() if f"tiny_{part}" in " ".join(child.cmdline())]
    with load(url) as noted:
        frozen.suspend()
        until(lambda: "tiny is stuck" in caplog.text)
        until(lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE)
        until(lambda: is_ready(url))
        noted.more_ok()
    assert noted.counts["lost"] == 0


def test_frozen_server_is_replaced(server: TritonServer, url: str, caplog: pytest.LogCaptureFixture) -> None:
    frozen = process_of(server)
    with load(url) as noted:
        os.kill(frozen.pid, signal.SIGSTOP)
        until(lambda: "tiny is stuck" in caplog.text)
        until(lambda: server._process.pid != frozen.pid and is_ready(url))  # its process may be gone already
        noted.more_ok()
    assert noted.counts["lost"] == 0


def toil(parts: Path) -> None:
    """A box head that takes a tenth of a second."""
    powers = "\n".join(f"m{i + 1} = MatMul (m{i}, m{i})" for i in range(8))
    write_graph(
        parts / "box_head" / "model.onnx",
        f"""(float[B, N, 4] hidden_states) => (float[B, N, 4] boxes, float[B, N] scores) {{
            top = ReduceMax <keepdims = 0> (hidden_states)
            zero = Constant <value = float {{0}}> ()
            nothing = Mul (top, zero)
            shape = Constant <value = int64[2] {{600, 600}}> ()
            m0 = Expand (nothing, shape)
            {powers}
            result = ReduceMax <keepdims = 0> (m8)
            nil = Mul (hidden_states, zero)
            half = Constant <value = float {{0.5}}> ()
            same = Add (nil, half)
            boxes = Add (same, result)
            last = Constant <value = int64[1] {{2}}> ()
            scores = ReduceMax <keepdims = 0> (boxes, last)
        }}""",
    )


def test_three_times_the_load_that_is_answered_restarts_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = tmp_path / "slow"
    publish_tiny(repository, edit=toil)
    with TritonServer(repository) as server:
        before = [process_of(server), *process_of(server).children()]
        settings = {"default_model": "tiny", "deadline_s": 1, "max_inflight_requests": 64}  # fewer than clients
        with gateway(repository, server.grpc_url, **settings) as url, load(url, clients=100) as noted:
            until(lambda: sum(noted.counts.values()) > 400)
        assert [process_of(server), *process_of(server).children()] == before
    assert noted.counts["lost"] == 0
    assert noted.counts["retryable"] > 0
    assert "stuck" not in caplog.text


def test_probes_fail_while_a_model_is_stuck_and_pass_once_triton_was_started_again(
    repository: Path, tmp_path: Path
) -> None:
    """As on Kubernetes: a container beside a plain Triton, which the kubelet starts again."""
    build(repository, "tiny", "", tmp_path / "models", Placement("cpu"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    def status(path: str) -> int:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}{path}").status_code
        return 0

    with PlainTriton(tmp_path / "models", "tiny") as triton:
        words = [sys.executable, "-m", "referent.triton.liveness", repository, "tiny", f"--port={port}", "--patience=2"]
        with subprocess.Popen([*words, f"--grpc={triton.grpc_url}", f"--metrics={triton.metrics_url}"]) as beside:
            try:
                until(lambda: (status("/live"), status("/ready")) == (200, 503))
                triton.wait_until_ready()
                until(lambda: (status("/live"), status("/ready")) == (200, 200))
                [frozen] = [
                    child
                    for child in psutil.Process(triton.process.pid).children()
                    if "tiny_language_model" in " ".join(child.cmdline())
                ]
                frozen.suspend()
                until(lambda: (status("/live"), status("/ready")) == (503, 503))
                frozen.kill()
                triton.process.kill()
                triton.process.wait()
                triton.start()
                until(lambda: (status("/live"), status("/ready")) == (200, 200))
                assert status("/") == 404
            finally:
                beside.kill()
