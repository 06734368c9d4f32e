"""The gateway on a port: asked by the SDK, and started by `referent serve`."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from gateway.__main__ import listen
from gateway.settings import Settings
from referent.bundle import verify_files
from referent.cli import app
from referent.client import Client, ServiceError
from tests.gateway.samples import jpeg


@pytest.mark.anyio
async def test_sdk_and_gateway_understand_each_other(url: str) -> None:
    with Client(url) as client:
        answer = await asyncio.to_thread(client.ground, jpeg(100, 200), ["the queen", "the king"], "tiny")
        assert [found.expression for found in answer.results] == ["the queen", "the king"]
        assert answer.results[0].box_xyxy == pytest.approx((25, 50, 75, 150))
        picture = Image.new("RGB", (8, 8))
        assert (await asyncio.to_thread(client.ground, picture, "the queen")).image.width == 8
        with pytest.raises(ServiceError, match="no model 'maxi'"):
            await asyncio.to_thread(client.ground, picture, "the queen", "maxi")


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Gives pytest its handler back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_when_it_is_ready_and_stops_all_on_a_signal(
    monkeypatch: pytest.MonkeyPatch, repository: Path, triton_url: str, stop: signal.Signals
) -> None:
    events: list[object] = []

    class FakeServer:
        def __init__(self, repository: Path, **options: Any) -> None:
            events.append((repository, options))

        def __enter__(self) -> SimpleNamespace:
            return SimpleNamespace(grpc_url=triton_url, models=["tiny"])

        def __exit__(self, *exception: object) -> None:
            events.append("triton stopped")

    def echo(message: str) -> None:
        events.append(message)
        if "ready" in message:
            signal.raise_signal(stop)

    monkeypatch.setattr("runtime.launcher.TritonServer", FakeServer)
    monkeypatch.setattr("typer.echo", echo)
    monkeypatch.setattr("gateway.telemetry.configure_logging", lambda: None)
    monkeypatch.setenv("REFERENT_METRICS_PORT", "0")

    result = CliRunner().invoke(
        app, ["serve", "--port", "0", "--grpc-port", "0", "--model-repository", str(repository)]
    )

    assert result.exit_code == 0
    started, ready, *ended = events
    assert started == (repository, {"grpc_port": 0, "verify": verify_files})
    assert str(ready).startswith("Referent is ready at http://127.0.0.1:")
    assert str(ready).endswith(f"(tiny; gRPC at {triton_url})")
    assert ended == ["triton stopped", "stopped"]


def test_serve_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gateway.telemetry.configure_logging", lambda: None)
    monkeypatch.setenv("REFERENT_METRICS_PORT", "0")
    arguments = ["serve", "--port", "0", "--grpc-port", "0", "--model-repository", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, f"no ensemble in {tmp_path}" in result.stderr) == (1, True)
    monkeypatch.setenv("REFERENT_PROT", "1")
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "unknown variables REFERENT_PROT" in result.stderr) == (1, True)


def test_answers_do_not_wait_for_the_clients_acknowledgement() -> None:
    with (
        listen(Settings(port=0, metrics_port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
