"""A gateway in front of a fake Triton."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from tritonclient.grpc import service_pb2_grpc

from gateway.app import create_app
from gateway.server import Server
from gateway.settings import Settings
from tests.support.fake_triton import FakeTriton, publish

Start = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path)
    return tmp_path


@pytest.fixture
def triton(repository: Path) -> FakeTriton:
    fake = FakeTriton()
    fake.serve(repository)
    return fake


@contextmanager
def listening(fake: FakeTriton, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Has the fake answer at an address, port 0 meaning a free one; the value is the address."""
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(address)
    server.start()
    yield f"{address.rpartition(':')[0]}:{port}"
    server.stop(0).wait()


@pytest.fixture
def triton_url(triton: FakeTriton) -> Iterator[str]:
    with listening(triton) as url:
        yield url


@pytest.fixture
def make_app(repository: Path, triton_url: str) -> Callable[..., FastAPI]:
    """Makes a gateway in front of the fake Triton; keywords are settings."""

    def make_app(on_ready: Callable[[], None] = lambda: None, **changes: Any) -> FastAPI:
        defaults = {"triton_url": triton_url, "model_repository": repository, "readiness_interval_s": 3600}
        return create_app(Settings(**{**defaults, **changes}), on_ready)

    return make_app


@pytest.fixture
def start(make_app: Callable[..., FastAPI]) -> Start:
    """Starts a gateway; requests go straight to the application."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = make_app(**changes)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            yield client

    return start


@asynccontextmanager
async def serving(make_app: Callable[..., FastAPI], **changes: Any) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    """The service's own server in this process, and its address; leaving ends it."""
    ready = asyncio.Event()
    server = Server(make_app(ready.set, **changes), Settings())
    server.capture_signals = nullcontext  # pytest keeps its own
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve([listener]))
        await ready.wait()
        yield server, listener.getsockname()
        server.should_exit = True
        await task


@pytest.fixture
async def url(make_app: Callable[..., FastAPI]) -> AsyncIterator[str]:
    """A gateway on a port."""
    ready = asyncio.Event()
    server = uvicorn.Server(uvicorn.Config(make_app(ready.set), log_config=None))
    server.capture_signals = nullcontext  # pytest keeps its own
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        await ready.wait()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest.fixture
async def client(start: Start) -> AsyncIterator[httpx.AsyncClient]:
    async with start() as client:
        yield client
