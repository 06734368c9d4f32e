"""Both clients against problems, lost connections and what is no answer."""

import socket
import threading
from collections.abc import Callable

import httpx
import pytest

from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.core.api import EXAMPLE
from tests.support.clients import Ask, client, good, problem
from tests.support.raw import ANSWER, raw_server, response


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
            try:
                connection.sendall(piece)
                if connection.recv(1) == b"":
                    raise ConnectionResetError
            except TimeoutError:
                pass
            except ConnectionError:  # of the one or the other, whichever comes first
                gone.set()
                raise

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
