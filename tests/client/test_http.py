"""Both clients against answers of the service; against the gateway itself in tests/gateway/test_serve.py."""

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from referent.client.http import AsyncClient, Client, ServiceError, ServiceUnreachableError
from referent.client.results import Grounding
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
MODEL = {
    "name": "mini",
    "version": "3",
    "digest": "sha256:0",
    "kind": "head",
    "gives": "boxes",
    "several": False,
    "knows": None,
    "default": True,
    "ready": True,
    "present_threshold": 0.5,
    "evaluation": {"cards": {"n": 171, "mean_iou": 0.8425}},
}


def client(handler: Handler, **options: Any) -> Client:
    return Client(transport=httpx.MockTransport(handler), **options)


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """ask(handler, method, *arguments): the same of `Client` and of `AsyncClient`; of several answers a list."""

    def ask(handler: Handler, method: str, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
        transport = httpx.MockTransport(handler)
        if request.param == "sync":
            with Client(transport=transport, **options or {}) as client:
                answer = getattr(client, method)(*arguments, **named)
                return list(answer) if method == "ground_many" else answer

        async def run() -> Any:
            async with AsyncClient(transport=transport, **options or {}) as client:
                answer = getattr(client, method)(*arguments, **named)
                return [each async for each in answer] if method == "ground_many" else await answer

        return asyncio.run(run())

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


def test_answer_is_typed(ask: Ask) -> None:
    answer = ask(good, "ground", b"image", "the queen")
    assert isinstance(answer, Grounding)
    assert answer.results[0].box_xyxy == (12.1, 80.4, 140.9, 260.0)
    assert answer.results[0].present is True
    assert answer.timings_ms.inference == 41.0
    assert answer.elapsed_ms > 0


def test_image_may_be_a_file_bytes_a_picture_or_an_array(tmp_path: Path, ask: Ask) -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(200, json=EXAMPLE)

    picture = Image.new("RGB", (3, 2), "red")
    (tmp_path / "red.png").write_bytes(png(picture))
    for image in (tmp_path / "red.png", str(tmp_path / "red.png"), png(picture), picture, np.asarray(picture)):
        ask(answer, "ground", image, ["the queen", "the king"], model="mini")
    for body in bodies:
        assert np.array_equal(sent_image(body), picture)
        assert body.count(b'name="expression"') == 2
        assert b'name="model"\r\n\r\nmini' in body


def test_a_picture_is_sent_as_it_lies_and_on_white() -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(200, json=EXAMPLE)

    turned, exif = Image.new("RGBA", (3, 2), (255, 0, 0, 0)), Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    client(answer).ground(turned, "a")
    sent = sent_image(bodies[0])
    assert (sent.size, sent.getexif().get(0x0112), sent.getpixel((0, 0))) == ((3, 2), None, (255, 255, 255))


def test_a_url_is_sent_for_the_service_to_fetch(ask: Ask) -> None:
    bodies: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.read()))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", "https://images.example.org/a.jpg", "the queen", model="mini")
    assert bodies == [
        {"image": {"url": "https://images.example.org/a.jpg"}, "expressions": ["the queen"], "model": "mini"}
    ]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint8), "4x4 uint8"),
        (np.zeros((4, 4, 3), np.float32), "4x4x3 float32"),
        (np.zeros((4, 4, 4), np.uint8), "4x4x4 uint8"),
        (np.zeros((0, 4, 3), np.uint8), "0x4x3 uint8"),
    ],
    ids=["grey", "float", "four channels", "empty"],
)
def test_an_array_that_is_no_image_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*\(height, width, 3\)"):
        client(good).ground(array, "a")


def test_models_and_metadata_are_typed(ask: Ask) -> None:
    answers = {"/v1/models": {"models": [MODEL]}, "/v1/metadata": METADATA}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answers[request.url.path])

    assert ask(answer, "models")[0].version == "3"
    assert ask(answer, "metadata").limits.expressions == 5


def test_key_and_url_are_given_or_of_the_environment(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    seen: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("authorization", "")))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", b"", "a", options={"url": "http://one", "api_key": "k1"})
    monkeypatch.setenv("REFERENT_URL", "http://two")
    monkeypatch.setenv("REFERENT_API_KEY", "k2")
    ask(answer, "ground", b"", "a")
    assert seen == [("one", "Bearer k1"), ("two", "Bearer k2")]


def test_the_service_is_told_how_long_it_is_waited_for(ask: Ask) -> None:
    told: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        told.append(float(request.headers["x-request-timeout"]))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", b"", "a", options={"timeout_s": 3})
    assert 2 < told[0] <= 3


def test_problem_becomes_a_service_error(ask: Ask) -> None:
    said = {"type": "urn:referent:problem:unknown-model", "title": "No such model", "detail": "no model 'maxi'"}
    with pytest.raises(ServiceError, match="No such model: no model 'maxi'") as caught:
        ask(lambda request: problem(404, **said), "ground", b"image", "a")
    error = caught.value
    assert (error.status, error.type, error.request_id, error.retryable, error.stage) == (
        404,
        "urn:referent:problem:unknown-model",
        "r-1",
        False,
        "request",
    )


def test_error_of_a_proxy_is_told_too(ask: Ask) -> None:
    with pytest.raises(ServiceError, match="Bad Gateway: upstream is gone") as caught:
        ask(lambda request: httpx.Response(502, text="upstream is gone"), "ground", b"image", "a")
    assert caught.value.retryable is False


def test_another_server_at_the_url_is_told(ask: Ask) -> None:
    with pytest.raises(ServiceUnreachableError, match="not as Referent does"):
        ask(lambda request: httpx.Response(200, text="<html>"), "ground", b"image", "a")


@pytest.mark.parametrize(
    ("refuse", "least_s", "most_s"),
    [
        (lambda: problem(429, {"retry-after": "7"}, retryable=True), 7, 8.4),
        (lambda: problem(504, {"retry-after": "1"}, retryable=True), 1, 1.2),
        (lambda: httpx.Response(503, text="proxy", headers={"retry-after": "2"}), 2, 2.4),
        (lambda: httpx.Response(503, text="proxy"), 0, 2),
    ],
    ids=["rate", "deadline", "proxy that says when", "proxy that does not"],
)
def test_what_may_succeed_later_is_asked_again_when_the_service_says_so(
    ask: Ask, waits: list[float], refuse: Callable[[], httpx.Response], least_s: float, most_s: float
) -> None:
    answers = [refuse(), refuse()]
    found = ask(lambda request: answers.pop() if answers else good(request), "ground", b"image", "a")
    assert found.model == "mini"
    assert len(waits) == 2
    assert all(least_s <= wait <= most_s for wait in waits)


def test_no_wait_is_longer_than_the_timeout(ask: Ask, waits: list[float]) -> None:
    with pytest.raises(ServiceError, match="wait a while"):
        ask(
            lambda request: problem(429, {"retry-after": "60"}, retryable=True, detail="wait a while"),
            "ground",
            b"image",
            "a",
            options={"timeout_s": 30},
        )
    assert not waits


def test_a_request_whose_connection_was_lost_is_sent_again(ask: Ask, waits: list[float]) -> None:
    faults = [httpx.ReadError("reset"), httpx.RemoteProtocolError("closed")]

    def answer(request: httpx.Request) -> httpx.Response:
        if faults:
            raise faults.pop()
        return httpx.Response(200, json=EXAMPLE)

    assert ask(answer, "ground", b"image", "a").model == "mini"
    assert len(waits) == 2


def test_no_service_is_told_at_once_and_with_the_command_that_starts_one(ask: Ask, waits: list[float]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ServiceUnreachableError, match="start a service with: referent serve"):
        ask(refuse, "ground", b"image", "a")
    assert not waits


def test_a_service_that_answered_before_is_waited_for(waits: list[float]) -> None:
    answers = [httpx.ConnectError("refused"), httpx.ConnectError("refused"), None]

    def restart(request: httpx.Request) -> httpx.Response:
        if fault := answers.pop():
            raise fault
        return httpx.Response(200, json=EXAMPLE)

    with client(restart) as service:
        service.ground(b"image", "a")
        answers.insert(0, None)
        assert service.ground(b"image", "a").model == "mini"
    assert len(waits) == 2


def test_a_timeout_and_a_wrong_url_are_told(ask: Ask) -> None:
    def stall(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("timed out", request=request)

    with pytest.raises(ServiceUnreachableError, match="within 2 s"):
        ask(stall, "ground", b"image", "a", options={"timeout_s": 2})
    with pytest.raises(ServiceUnreachableError, match="port"):
        ask(good, "ground", b"image", "a", options={"url": "http://host:port"})


def named(request: httpx.Request) -> httpx.Response:
    """Answers with the bytes that it was sent as the model's name; refuses some."""
    body = request.read()
    for status in (401, 404, 415, 500):
        if b"\r\n\r\n%d\r\n" % status in body:
            return problem(status, detail=f"number {status}")
    name = body.split(b"octet-stream\r\n\r\n")[1].split(b"\r\n")[0]
    return httpx.Response(200, json=EXAMPLE | {"model": name.decode()})


def test_many_are_answered_in_order_each_with_its_own_error(tmp_path: Path, ask: Ask) -> None:
    images = [b"0", b"1", tmp_path / "none.jpg", b"3", b"415", np.zeros((2, 2)), b"500", b"7"]
    answers = ask(named, "ground_many", [(image, ["a"]) for image in images], concurrency=3, progress=True)
    said = [answer.model if isinstance(answer, Grounding) else type(answer).__name__ for answer in answers]
    assert said == ["0", "1", "FileNotFoundError", "3", "ServiceError", "ValueError", "ServiceError", "7"]


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
