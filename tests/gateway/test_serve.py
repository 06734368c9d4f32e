"""The gateway on a port: asked by the SDK, and started by `referent serve`."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from typer.testing import CliRunner

from gateway.server import listen, main
from gateway.settings import Settings
from referent.client.failures import ServiceError
from referent.client.http import AsyncClient, Client
from referent.commands.app import app
from tests.support.fake_triton import FakeTriton
from tests.support.gateway import serving
from tests.support.requests import in_json, jpeg


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
        async with AsyncClient(url) as other:
            assert (await other.ground(jpeg(100, 200), ["the queen", "the king"])).results == answer.results
            assert [model.name for model in await other.models()] == ["tiny"]
            assert (await other.metadata()).limits.images == Settings().max_images


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of a terminal's foreground, also where the tests run in the background; pytest gets its own back."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_when_it_is_ready_and_stops_all_on_a_signal(
    monkeypatch: pytest.MonkeyPatch, repository: Path, triton_url: str, stop: signal.Signals
) -> None:
    events: list[object] = []

    class FakeServer:
        def __init__(self, repository: Path, models: list[str] | None, **options: Any) -> None:
            events.append((repository, models, options))

        def __enter__(self) -> SimpleNamespace:
            return SimpleNamespace(grpc_url=triton_url, models=["tiny"], golden_s=0.1)

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
    monkeypatch.setenv("REFERENT_DRAIN_GRACE_S", "0.2")

    result = CliRunner().invoke(
        app, ["serve", "--port", "0", "--grpc-port", "0", "--model-repository", str(repository)]
    )

    assert result.exit_code == 0
    started, ready, *ended = events
    assert started == (repository, None, ANY)
    assert started[2].items() >= {"grpc_port": 0, "shared_memory": False, "device": None}.items()
    assert str(ready).startswith("Referent is ready at http://127.0.0.1:")
    assert str(ready).endswith(f"(tiny; gRPC at {triton_url})")
    assert ended == ["triton stopped", "stopped"]


@pytest.fixture
def process(repository: Path, triton_url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m gateway` with a grace period, and its URL."""
    settings = {"PORT": "0", "METRICS_PORT": "0", "TRITON_URL": triton_url, "MODEL_REPOSITORY": str(repository)}
    environment = os.environ | {f"REFERENT_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "gateway"]
    environment["REFERENT_DRAIN_GRACE_S"] = "600"  # what ends it below is a second signal, not the clock
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        lines = map(json.loads, process.stderr)
        yield process, next(line["url"] for line in lines if line["event"] == "ready")
        process.kill()


@pytest.mark.anyio
async def test_head_that_does_not_arrive_is_not_waited_for(
    make_app: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.server.HEAD_TIMEOUT_S", 0.3)
    body = json.dumps(in_json(jpeg(), "the queen")).encode()
    head = f"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    async with serving(make_app) as (_, address):
        slow_body, slow_head, silent = [await asyncio.open_connection(*address) for _ in range(3)]
        slow_body[1].write(head.encode() + b"\r\n")
        slow_head[1].write(b"POST /v1/gr")
        assert await slow_head[0].read() == await silent[0].read() == b""  # closed, after the time
        slow_body[1].write(body)
        assert b" 200 " in await slow_body[0].readline()


@pytest.mark.anyio
@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_offer_of_another_protocol_is_passed_over(make_app: Callable[..., FastAPI], protocol: str) -> None:
    """Java's HttpClient offers h2c with every first request."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQAAP__", "Upgrade": protocol}
    async with serving(make_app) as (_, (host, port)), httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
        for _ in range(2):
            response = await client.post("/v1/ground", json=in_json(jpeg(), "the queen"), headers=offer)
            assert response.status_code == 200


async def accepts(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/livez")).status_code == 200
    except httpx.TransportError:  # refused, or closed just as it connected
        return False


@pytest.mark.anyio
async def test_draining_serves_through_the_grace_period_and_ends_what_is_in_flight(
    process: tuple[subprocess.Popen[str], str], triton: FakeTriton
) -> None:
    gateway, url = process
    good = in_json(jpeg(), "the queen")
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        gateway.terminate()
        while (ready := await client.get("/readyz")).status_code == 200:
            pass
        assert ready.json()["type"] == "urn:referent:problem:draining"
        served = await client.post("/v1/ground", json=good)
        assert (served.status_code, served.headers["connection"]) == (200, "close")

        triton.holds = True
        in_flight = asyncio.create_task(client.post("/v1/ground", json=good))
        assert await asyncio.to_thread(triton.arrived.wait, 30)
        gateway.terminate()  # the grace period is over
        while await accepts(client):
            pass
        triton.release()
        assert (await in_flight).status_code == 200
    assert await asyncio.to_thread(gateway.wait, 30) == 0


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [("KEYS_FILE", "/nowhere/keys", "/nowhere/keys"), ("HOST", "0.0.0.0", "REFERENT_OPEN_ACCESS=true")],
)
def test_gateway_that_cannot_start_says_why_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    for name, setting in {"PORT": "0", "METRICS_PORT": "0", variable: value}.items():
        monkeypatch.setenv(f"REFERENT_{name}", setting)
    monkeypatch.setattr("gateway.server.configure_logging", lambda: None)
    with pytest.raises(SystemExit, match=message):
        main()


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
