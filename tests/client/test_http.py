"""Both clients against good and bad answers; against the gateway itself in tests/gateway/test_serve.py."""

import asyncio
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.client.http import AsyncClient, Client
from referent.client.results import Grounding
from referent.core.api import EXAMPLE
from referent.core.images import ImageTooLargeError
from tests.support.answers import SERVED_MODEL
from tests.support.raw import ANSWER, raw_server, response

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


@pytest.mark.parametrize("image", [b"bytes", "https://images.example.org/a.jpg"], ids=["form", "json"])
def test_options_of_an_answer_are_asked_for(ask: Ask, image: bytes | str) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read().replace(b"\r\n", b""))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", image, "a", max_instances=7, heatmap=True)
    ask(answer, "ground", image, "a")
    assert b"max_instances" in bodies[0]
    assert b"heatmap" in bodies[0]
    assert b"7" in bodies[0].partition(b"max_instances")[2][:4]
    assert b"max_instances" not in bodies[1]


def test_models_and_metadata_are_typed(ask: Ask) -> None:
    answers = {"/v1/models": {"models": [SERVED_MODEL]}, "/v1/metadata": METADATA}

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


@pytest.mark.parametrize("said", ["0", "-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99", ""])
def test_a_service_that_asks_for_no_wait_is_waited_for_longer_each_time(
    ask: Ask, waits: list[float], said: str
) -> None:
    refused = [problem(429, {"retry-after": said}, retryable=True) for _ in range(8)]
    assert ask(lambda request: refused.pop() if refused else good(request), "ground", b"image", "a").model == "mini"
    assert len(waits) == len(set(waits)) == 8
    assert waits[0] >= 0.1
    assert waits[3] > waits[0]
    assert max(waits) <= 2


def test_attempts_end_with_the_time(ask: Ask) -> None:
    attempts = []

    def refuse(request: httpx.Request) -> httpx.Response:
        attempts.append(request)
        return problem(503, {"retry-after": "0"}, retryable=True)

    with pytest.raises(ServiceError, match="status 503"):
        ask(refuse, "ground", b"image", "a", options={"timeout_s": 1})
    assert 1 < len(attempts) < 6


@pytest.mark.parametrize("when", ["3600", "9" * 400, "Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 21 Oct 2099 07:28:00"])
def test_what_would_be_too_late_is_not_waited_for(ask: Ask, waits: list[float], when: str) -> None:
    with pytest.raises(ServiceError, match="status 429"):
        ask(lambda request: problem(429, {"retry-after": when}, retryable=True), "ground", b"image", "a")
    assert not waits


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


DRIPS = {
    "the head": [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"],
    "the body": [response(ANSWER)[: -len(ANSWER)], b" "],
    "chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"],
    "interim answers": [b"", b"HTTP/1.1 102 Processing\r\n\r\n"],
    "nothing": [b"", b""],
}


@pytest.mark.parametrize("drip", DRIPS)
def test_a_call_ends_in_time_however_the_answer_drips(ask_url: Ask, drip: str) -> None:
    start, piece = DRIPS[drip]
    gone = threading.Event()

    def talk(connection: socket.socket, request: bytes) -> None:
        """Goes on until the client leaves."""
        connection.sendall(start)
        connection.settimeout(0.02)
        while True:
            connection.sendall(piece)
            try:
                if connection.recv(1) == b"":
                    gone.set()
                    raise ConnectionResetError
            except TimeoutError:
                pass

    with raw_server(talk) as url, pytest.raises(ServiceUnreachableError, match=r"within 0\.5 s"):
        ask_url(url, "ground", b"image", "a", options={"timeout_s": 0.5})
    assert gone.wait(60)


PROBLEM = "content-type: application/problem+json"
ODD_PROBLEMS = {
    "a list": (b"[]", PROBLEM),
    "null": (b"null", PROBLEM),
    "half": (b'{"type":', PROBLEM),
    "not text": (b"\xff\xfe{", PROBLEM),
    "nothing": (b"", PROBLEM),
    "nested without end": (b"[" * 100_000, PROBLEM),
    "fields of other types": (b'{"retryable": "no", "title": 5, "detail": null, "status": "x", "stage": []}', PROBLEM),
    "another encoding": (b"{}", "content-type: application/problem+json; charset=punycode"),
    "bytes of another encoding": (b"caf\xe9", "content-type: text/plain; charset=undefined"),
}


@pytest.mark.parametrize("odd", ODD_PROBLEMS)
def test_a_problem_that_is_none_is_a_service_error(ask_url: Ask, odd: str) -> None:
    body, header = ODD_PROBLEMS[odd]
    with (
        raw_server(lambda connection, _: connection.sendall(response(body, "422 No", header))) as url,
        pytest.raises(ServiceError, match="status 422") as caught,
    ):
        ask_url(url, "ground", b"image", "a")
    error = caught.value
    assert (error.type, error.retryable, error.stage, error.request_id) == ("about:blank", False, None, None)
    assert error.title == "No"
    assert isinstance(error.detail, str)


ODD_ANSWERS = {
    "HTML": response(b"<html>"),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "half": response(ANSWER[:100]),
    "not text": response(b"\xff\xfe"),
    "another document": response(b'{"models": []}'),
    "no gzip": response(b"no gzip", "200 OK", "Content-Encoding: gzip"),
    "a redirect": response(b"", "307 Moved", "Location: https://elsewhere.test/"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 300_000,
}


@pytest.mark.parametrize("odd", ODD_ANSWERS)
def test_what_is_no_answer_of_the_service_is_one_error(ask_url: Ask, odd: str) -> None:
    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(ODD_ANSWERS[odd])
        raise ConnectionResetError

    with raw_server(talk) as url, pytest.raises(ServiceUnreachableError, match=url):
        ask_url(url, "ground", b"image", "a", options={"timeout_s": 0.5})


def test_a_redirect_is_told_with_its_target(ask: Ask) -> None:
    moved = httpx.Response(301, headers={"location": "https://elsewhere.test/v1/ground"})
    with pytest.raises(ServiceUnreachableError, match=r"redirects to https://elsewhere\.test"):
        ask(lambda request: moved, "ground", b"image", "a")


@pytest.mark.parametrize("key", [" k1", "k1\n", "\tk1\r\n"])
def test_space_around_a_key_is_none_of_it(ask: Ask, key: str) -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return good(request)

    ask(answer, "ground", b"", "a", options={"api_key": key})
    assert seen == ["Bearer k1"]


@pytest.mark.parametrize("key", ["secr\u00e9t", "secret\nsecret", "secret\0", "secret\x7f", "\u200bsecret"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(ask: Ask, key: str) -> None:
    with pytest.raises(ValueError, match="REFERENT_API_KEY") as caught:
        ask(good, "ground", b"", "a", options={"api_key": key})
    assert "secr" not in str(caught.value)


def test_a_blank_key_is_none(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFERENT_API_KEY", " \n")
    ask(lambda request: good(request) if "authorization" not in request.headers else problem(401), "ground", b"", "a")


@pytest.mark.parametrize("form", ["localhost:{}", "127.0.0.1:{}/", " http://127.0.0.1:{} ", "//localhost:{}"])
def test_the_url_may_be_written_in_several_ways(ask_url: Ask, form: str) -> None:
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url:
        assert ask_url(form.format(url.rpartition(":")[2]), "ground", b"image", "a").model == "mini"


def test_a_path_of_the_url_stands_before_those_of_the_api(ask: Ask) -> None:
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return good(request)

    ask(answer, "ground", b"", "a", options={"url": "http://host/below/"})
    assert paths == ["/below/v1/ground"]


@pytest.mark.parametrize(
    "url", ["ftp://u:secret@host", "http://", "http://u:secret@host:99999", "http://u:secret@host:port", "u:secret@:8"]
)
def test_what_is_no_url_is_told_without_its_password(ask: Ask, url: str) -> None:
    with pytest.raises(ServiceUnreachableError, match="is not the URL of a service") as caught:
        ask(good, "ground", b"", "a", options={"url": url})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), None, "3"])
def test_a_time_limit_is_a_number_of_seconds(ask: Ask, timeout_s: Any) -> None:
    with pytest.raises(ValueError, match="timeout_s is"):
        ask(good, "ground", b"", "a", options={"timeout_s": timeout_s})


NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTP_PROXY", NOWHERE),
        ("http_proxy", NOWHERE),
        ("ALL_PROXY", "socks://127.0.0.1:9"),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("NO_PROXY", "localhost,[::1]"),
        ("NO_PROXY", "fe80::/10"),
    ],
)
def test_a_service_of_this_machine_is_asked_directly(
    ask_url: Ask, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url:
        for own in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "0.0.0.0")):
            assert ask_url(own, "ground", b"image", "a").model == "mini"


@pytest.mark.parametrize(
    ("variable", "value", "scheme"),
    [
        ("HTTP_PROXY", NOWHERE, "http"),
        ("http_proxy", "127.0.0.1:9", "http"),
        ("https_proxy", NOWHERE, "https"),
        ("ALL_PROXY", NOWHERE, "https"),
        ("ALL_PROXY", "socks://u:secret@127.0.0.1:9", "http"),
        ("all_proxy", "ftp://127.0.0.1:9", "http"),
    ],
)
def test_a_proxy_that_does_not_work_is_told_with_its_variable(
    ask_url: Ask, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, scheme: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ServiceUnreachableError, match=f"the proxy of {variable}.*service.test in NO_PROXY") as caught:
        ask_url(f"{scheme}://service.test", "ground", b"image", "a")
    assert "secret" not in str(caught.value)


def test_other_services_are_asked_through_the_proxy(ask_url: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [response(b"", "502 Bad Gateway"), response(ANSWER)]
    with raw_server(lambda connection, _: connection.sendall(answers.pop())) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert ask_url("service.test", "ground", b"image", "a").model == "mini"
        with pytest.raises(ServiceError, match="through the proxy of http_proxy"):
            ask_url("service.test", "ground", b"image", "a")


def test_one_client_serves_several_event_loops() -> None:
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url:
        client = AsyncClient(url)
        for _ in range(3):
            assert asyncio.run(client.ground(b"image", "a")).model == "mini"
        with ThreadPoolExecutor(4) as pool:  # and at the same time
            answers = pool.map(lambda _: asyncio.run(client.ground(b"image", "a")), range(8))
            assert [answer.model for answer in answers] == ["mini"] * 8


def test_a_client_serves_threads_an_event_loop_and_a_process_that_was_forked(tmp_path: Path) -> None:
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url, Client(url) as client:
        with ThreadPoolExecutor(4) as pool:
            assert len({answer.model for answer in pool.map(lambda _: client.ground(b"", "a"), range(8))}) == 1

        async def inside() -> str:
            return client.ground(b"image", "a").model

        assert asyncio.run(inside()) == "mini"
        process = get_context("fork").Process(target=client.ground, args=(b"image", "a"))
        process.start()
        process.join(30)
        assert process.exitcode == 0


def test_nothing_is_printed_or_logged_unless_it_is_asked_for() -> None:
    program = (
        "import httpx; from referent import Client; turns = iter(range(2))\n"
        "def answer(request): return httpx.Response(200 if next(turns) else 503)\n"
        "try: Client(transport=httpx.MockTransport(answer)).models()\n"
        "except ConnectionError: pass\n"
    )
    quiet, verbose = (
        subprocess.run([sys.executable, "-c", f"{first}{program}"], capture_output=True, text=True, timeout=60)
        for first in ("", "import logging; logging.basicConfig(level='INFO')\n")
    )
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert "INFO:referent.client.http:asking again in" in verbose.stderr


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
