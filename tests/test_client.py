"""The SDK against answers of the service; against the gateway itself in tests/gateway/test_serve.py."""

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from referent.api import EXAMPLE
from referent.client import Client, ServiceError, ServiceUnreachableError

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler) -> Client:
    return Client(transport=httpx.MockTransport(handler))


def test_answer_is_typed() -> None:
    answer = client(lambda request: httpx.Response(200, json=EXAMPLE)).ground(b"image", "the queen")
    assert answer.results[0].box_xyxy == (12.1, 80.4, 140.9, 260.0)
    assert answer.results[0].present is True
    assert answer.timings_ms.inference == 41.0


def test_image_may_be_a_file_bytes_or_a_picture(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(200, json=EXAMPLE)

    picture, buffer = Image.new("RGB", (3, 2), "red"), io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "red.png").write_bytes(buffer.getvalue())
    for image in (tmp_path / "red.png", str(tmp_path / "red.png"), buffer.getvalue(), picture):
        client(answer).ground(image, ["the queen", "the king"], model="mini")
    for body in bodies:
        assert buffer.getvalue() in body
        assert body.count(b'name="expression"') == 2
        assert b'name="model"\r\n\r\nmini' in body


def test_problem_becomes_a_service_error() -> None:
    problem = {
        "type": "urn:referent:problem:not-ready",
        "title": "Not ready",
        "detail": "mini is not ready yet",
        "request_id": "r-1",
        "retryable": True,
        "stage": "request",
    }
    headers = {"content-type": "application/problem+json"}
    with pytest.raises(ServiceError, match="Not ready: mini is not ready yet") as caught:
        client(lambda request: httpx.Response(503, json=problem, headers=headers)).ground(b"image", "a")
    error = caught.value
    assert (error.status, error.type, error.request_id, error.retryable, error.stage) == (
        503,
        "urn:referent:problem:not-ready",
        "r-1",
        True,
        "request",
    )


def test_error_of_a_proxy_is_told_too() -> None:
    with pytest.raises(ServiceError, match="Bad Gateway: upstream is gone") as caught:
        client(lambda request: httpx.Response(502, text="upstream is gone")).ground(b"image", "a")
    assert caught.value.retryable is False


def test_no_service_says_which_command_starts_one() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ServiceUnreachableError, match="start a service with: referent serve"):
        client(refuse).ground(b"image", "a")
