"""Many questions in one call of a client."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.client.http import AsyncClient
from referent.client.results import Grounding
from referent.core.api import EXAMPLE
from referent.core.images import ImageTooLargeError
from tests.support.clients import METADATA, Ask, client, good, problem


def named(request: httpx.Request) -> httpx.Response:
    """Answers with the bytes that it was sent as the model's name; refuses some."""
    body = request.read()
    for status in (401, 404, 415, 500):
        if b"\r\n\r\n%d\r\n" % status in body:
            return problem(status, detail=f"number {status}")
    name = body.split(b"octet-stream\r\n\r\n")[1].split(b"\r\n")[0]
    return httpx.Response(200, json=EXAMPLE | {"model": name.decode()})


def test_many_are_answered_in_order_each_with_its_own_error(tmp_path: Path, ask: Ask) -> None:
    images = [b"0", b"1", tmp_path / "none.jpg", b"3", b"415", np.zeros((2, 2)), b"500", b"7", None, tmp_path, b"10"]
    answers = ask(named, "ground_many", [(image, ["a"]) for image in images], concurrency=3, progress=True)
    said = [answer.model if isinstance(answer, Grounding) else type(answer).__name__ for answer in answers]
    faults = ("FileNotFoundError", "3", "ServiceError", "ValueError", "ServiceError", "7", "ValueError")
    assert said == ["0", "1", *faults, "IsADirectoryError", "10"]


@pytest.mark.parametrize(
    "item", [(b"1", None), (b"1", [3]), (b"1", ["caf\udce9"]), (b"1",), None, "ab", (b"1", "a", "b")]
)
def test_an_item_that_is_none_is_a_value_among_the_others(ask: Ask, item: Any) -> None:
    first, fault, last = ask(named, "ground_many", [(b"0", "a"), item, (b"2", "a")])
    assert (first.model, type(fault), last.model) == ("0", ValueError, "2")


def with_limit(request: httpx.Request) -> httpx.Response:
    """A service that takes 2 MB, and loses the connection of whoever sends more."""
    if request.url.path == "/v1/metadata":
        return httpx.Response(200, json=METADATA | {"limits": METADATA["limits"] | {"image_bytes": 2_000_000}})
    if len(request.read()) > 2_100_000:
        raise httpx.WriteError("reset")
    return good(request)


def test_an_image_over_the_service_s_limit_is_refused_with_it(ask: Ask) -> None:
    small, large, larger = b"s", b"l" * 2_000_001, b"l" * 9_000_000
    kinds = [
        type(answer) for answer in ask(with_limit, "ground_many", [(each, "a") for each in (small, large, larger)])
    ]
    assert kinds == [Grounding, ImageTooLargeError, ImageTooLargeError]
    with pytest.raises(
        ImageTooLargeError, match=r"too large: 9\.0 MB; the limit of http://127\.0\.0\.1:8000 is 2\.0 MB"
    ):
        ask(with_limit, "ground", larger, "a")
    assert ask(good, "ground", larger, "a").model == "mini"  # the control: one that does not tell its limits


@pytest.mark.parametrize("fault", [httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadTimeout])
@pytest.mark.parametrize("lives", [True, False], ids=["service lives", "service is gone"])
def test_an_item_that_loses_its_connection_ends_the_run_only_if_the_service_is_gone(
    ask: Ask, waits: list[float], fault: type[httpx.TransportError], lives: bool
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/metadata" and lives:
            return httpx.Response(200, json=METADATA)
        if request.url.path == "/v1/metadata" or b"\r\n\r\n1\r\n" in request.read():
            raise fault("lost")
        return named(request)

    def run() -> list[Any]:
        items = [(b"0", "a"), (b"1", "a"), (b"2", "a")]
        return ask(answer, "ground_many", items, concurrency=1, options={"timeout_s": 0.3})

    if lives:
        assert [type(answer) for answer in run()] == [Grounding, ServiceUnreachableError, Grounding]
    else:
        with pytest.raises(ServiceUnreachableError):
            run()


@pytest.mark.parametrize("status", [401, 404], ids=["no key", "unknown model"])
def test_what_every_item_would_meet_ends_the_run(ask: Ask, status: int) -> None:
    with pytest.raises(ServiceError, match=f"number {status}"):
        ask(named, "ground_many", [(b"0", "a"), (str(status).encode(), "a"), (b"2", "a")])


def test_no_concurrency_is_refused(ask: Ask) -> None:
    with pytest.raises(ValueError, match="at least one at a time"):
        ask(good, "ground_many", [(b"", "a")], concurrency=0)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_than_so_many_requests_at_a_time(concurrency: int) -> None:
    at_once = most = 0

    async def count(request: httpx.Request) -> httpx.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(10):  # gives the others their turn
            await asyncio.sleep(0)
        at_once -= 1
        return httpx.Response(200, json=EXAMPLE)

    async def run() -> int:
        async with AsyncClient(transport=httpx.MockTransport(count)) as client:
            return len([answer async for answer in client.ground_many([(b"", "a")] * 20, concurrency=concurrency)])

    assert asyncio.run(run()) == 20
    assert most == concurrency


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Any:
        for number in range(100):
            taken.append(number)
            yield b"", "a"

    next(client(good).ground_many(items(), concurrency=4))
    assert len(taken) == 4
