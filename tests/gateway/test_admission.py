"""Who is let in: budgets of requests and bytes, rates, deadlines; the next request is answered."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from gateway.settings import Settings
from referent.core.kind import Options
from referent.core.spec import ModelSpec
from referent.kinds import KINDS
from referent.kinds.head import Head
from tests.support.fake_triton import FakeTriton
from tests.support.gateway import Start
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio
GOOD = in_json(jpeg(), "the queen")
JSON = {"Content-Type": "application/json"}


def problem(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, kind and stage of a problem that may be tried again."""
    body = response.json()
    assert body["retryable"]
    assert int(response.headers["retry-after"]) >= 1
    return response.status_code, body["type"].rpartition(":")[2], body["stage"]


async def hold(client: httpx.AsyncClient, triton: FakeTriton, **request: Any) -> "asyncio.Task[httpx.Response]":
    """Sends a request that Triton does not answer; returns when it is there."""
    triton.holds = True
    task = asyncio.create_task(client.post("/v1/ground", **request))
    assert await asyncio.to_thread(triton.arrived.wait, 30)
    return task


async def end(task: "asyncio.Task[httpx.Response]", triton: FakeTriton) -> None:
    """Has the held request's client leave."""
    task.cancel()
    assert await asyncio.to_thread(triton.abandoned.wait, 30)
    triton.holds = False


async def test_request_beyond_the_budget_is_shed_at_once(start: Start, triton: FakeTriton) -> None:
    async with start(max_inflight_requests=1) as client:
        held = await hold(client, triton, json=GOOD)
        assert problem(await client.post("/v1/ground", json=GOOD)) == (429, "overloaded", "request")
        assert (await client.get("/livez")).status_code == 200
        await end(held, triton)
        assert (await client.post("/v1/ground", json=GOOD)).status_code == 200


class Heavy(Head):
    """Each expression costs as much as a whole request."""

    def requests(self, spec: ModelSpec, expressions: int, options: Options) -> int:
        return expressions


@pytest.mark.parametrize(("held", "asked", "status"), [(1, 3, 200), (2, 2, 200), (2, 3, 429), (3, 3, 429), (4, 1, 429)])
async def test_a_request_that_costs_more_counts_more(
    start: Start, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, held: int, asked: int, status: int
) -> None:
    monkeypatch.setitem(KINDS, "head", Heavy())
    async with start(max_inflight_requests=4) as client:
        holding = await hold(client, triton, json=in_json(jpeg(), *["the queen"] * held))
        triton.holds = False
        answer = await client.post("/v1/ground", json=in_json(jpeg(), *["the queen"] * asked))
        assert answer.status_code == status
        assert status == 200 or problem(answer)[1] == "overloaded"
        await end(holding, triton)
        # what costs more than the limit is let in where it is alone
        assert (await client.post("/v1/ground", json=in_json(jpeg(), *["the queen"] * 9))).status_code == 200


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_bytes_beyond_the_budget_are_not_read(start: Start, triton: FakeTriton, announced: bool) -> None:
    sent = 0

    async def chunks(body: bytes) -> AsyncIterator[bytes]:
        nonlocal sent
        for i in range(0, len(body), 100_000):
            sent += 1
            yield body[i : i + 100_000]

    padded = json.dumps(GOOD).encode() + bytes(700_000).replace(b"\0", b" ")
    length = {"Content-Length": str(len(padded))} if announced else {}
    async with start(max_image_bytes=10_000, max_inflight_bytes=1_100_000) as client:
        held = await hold(client, triton, content=padded, headers=JSON)
        response = await client.post("/v1/ground", content=chunks(padded), headers=JSON | length)
        assert problem(response) == (429, "overloaded", "request")
        assert sent == (0 if announced else 4)
        await end(held, triton)
        assert (await client.post("/v1/ground", content=padded, headers=JSON)).status_code == 200


async def test_fetched_bytes_count_in_the_budget(start: Start, triton: FakeTriton) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(1000, 1000))
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        urls = {"image_urls": "global", "image_url_private_hosts": "127.0.0.1", "image_url_ports": str(port)}
        query = {"image": {"url": f"http://127.0.0.1:{port}/"}, "expressions": ["the queen"]}
        padded = json.dumps(GOOD).encode().ljust(1_100_000)
        async with start(**urls, max_image_bytes=50_000, max_inflight_bytes=1_120_000) as client:
            held = await hold(client, triton, content=padded, headers=JSON)
            assert problem(await client.post("/v1/ground", json=query)) == (429, "overloaded", "request")
            await end(held, triton)
            for _ in range(3):  # what is fetched is given back
                assert (await client.post("/v1/ground", json=query)).status_code == 200


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [("1.2.3.4", "1.2.3.4", 429), ("1.2.3.4", "1.2.3.5", 200), ("2001:db8::1", "2001:db8::2", 429)],
    ids=["same address", "another address", "same IPv6 network"],
)
async def test_rate_is_counted_by_client(
    make_app: Callable[..., FastAPI], first: str, second: str, status: int
) -> None:
    app = make_app(rate_limit="2/minute")
    async with app.router.lifespan_context(app):
        for address, expected in ((first, 200), (first, 200), (second, status)):
            transport = httpx.ASGITransport(app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                response = await client.post("/v1/ground", json=GOOD)
                assert response.status_code == expected
                assert (await client.get("/livez")).status_code == 200
        if status == 429:
            assert problem(response) == (429, "rate-limited", "request")
            assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_body_that_drips_is_cut(start: Start) -> None:
    async def drip() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with start(deadline_s=0.2) as client:
        response = await client.post("/v1/ground", content=drip(), headers=JSON)
        assert problem(response) == (408, "slow-body", "body")
        assert response.headers["connection"] == "close"


async def test_caller_shortens_the_deadline_and_cannot_lengthen_it(start: Start, triton: FakeTriton) -> None:
    async with start(deadline_s=0.5) as client:
        triton.holds = True
        for given, seconds in (("0.2", "0.2 s"), ("60", "0.5 s")):
            response = await client.post("/v1/ground", json=GOOD, headers={"X-Request-Timeout": given})
            assert problem(response)[:2] == (504, "deadline-exceeded")
            assert seconds in response.json()["detail"]


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan"])
async def test_unfit_timeout_is_refused(client: httpx.AsyncClient, given: str) -> None:
    response = await client.post("/v1/ground", json=GOOD, headers={"X-Request-Timeout": given})
    assert (response.status_code, given in response.json()["detail"]) == (422, True)


async def test_work_that_waits_for_a_thread_is_dropped_when_its_time_is_up(make_app: Callable[..., FastAPI]) -> None:
    app, release, ran = make_app(decode_threads=1), threading.Event(), threading.Event()
    async with app.router.lifespan_context(app):
        running = asyncio.create_task(app.state.pipeline.in_pool(release.wait))
        await asyncio.sleep(0)  # lets it be the first
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await app.state.pipeline.in_pool(ran.set)
        release.set()
        await running
        assert await app.state.pipeline.in_pool(lambda: "after") == "after"
    assert not ran.is_set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate_limit": "fast"}, "fast"),
        ({"triton_url": "10.0.0.1:8001,triton:8001"}, "triton:8001 in a list .* dns:///NAME:PORT"),
        ({"max_inflight_bytes": 1000}, "less than one body: set it to at least"),
        ({"host": "0.0.0.0"}, "REFERENT_KEYS_FILE .* or REFERENT_OPEN_ACCESS=true"),
    ],
    ids=["rate", "names in a list", "bytes", "open to others"],
)
def test_unfit_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(**settings)
