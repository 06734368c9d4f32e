"""A service that answers as a test says, and both clients of it."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from referent.client.http import AsyncClient, Client
from referent.core.api import EXAMPLE

Handler = Callable[[httpx.Request], httpx.Response]
Ask = Callable[..., Any]
METADATA = {
    "name": "referent",
    "version": "1.2",
    "models": [],
    "formats": ["image/png"],
    "image_urls": "off",
    "limits": {
        "body_bytes": 1,
        "image_bytes": 2,
        "image_pixels": 3,
        "images": 4,
        "expressions": 5,
        "expression_characters": 6,
        "deadline_s": 7,
    },
}


def client(handler: Handler, **options: Any) -> Client:
    return Client(transport=httpx.MockTransport(handler), **options)


@pytest.fixture(params=["sync", "async"])
def ask_url(request: pytest.FixtureRequest) -> Ask:
    """ask_url(url, method, *arguments): the same of `Client` and of `AsyncClient`; of several answers a list."""

    def ask(url: str | None, method: str, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
        settings = {"url": url} | (options or {})
        if request.param == "sync":
            with Client(**settings) as client:
                answer = getattr(client, method)(*arguments, **named)
                return list(answer) if method == "ground_many" else answer

        async def run() -> Any:
            async with AsyncClient(**settings) as client:
                answer = getattr(client, method)(*arguments, **named)
                return [each async for each in answer] if method == "ground_many" else await answer

        return asyncio.run(run())

    return ask


@pytest.fixture
def ask(ask_url: Ask) -> Ask:
    """ask(handler, method, *arguments): of a service that answers so."""

    def ask(handler: Handler, method: str, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
        with_handler = {"transport": httpx.MockTransport(handler)} | (options or {})
        return ask_url(None, method, *arguments, options=with_handler, **named)

    return ask


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been slept between attempts."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("asyncio.sleep", sleep)
    return slept


def good(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=EXAMPLE)


def problem(status: int, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"type": "about:blank", "title": "No", "detail": "no", "request_id": "r-1", "stage": "request"} | fields
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json"} | (headers or {}))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def sent_image(body: bytes) -> Image.Image:
    start = body.index(b"\x89PNG")
    return Image.open(io.BytesIO(body[start:]))
