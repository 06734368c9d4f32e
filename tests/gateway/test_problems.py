"""Bad requests and failing models: a clear problem each, and the next request is answered."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from gateway.errors import TABLE
from tests.support.fake_triton import FakeTriton
from tests.support.gateway import Start
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio
IMAGE = jpeg(100, 200)
GOOD = in_json(IMAGE, "the queen")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
async def client(start: Start) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with small limits."""
    async with start(max_image_bytes=20_000, max_pixels=30_000, max_expressions=5, max_images=2) as client:
        yield client


def assert_problem(response: httpx.Response, status: int, slug: str, stage: str | None, detail: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "instance", "request_id", "retryable", "stage"}
    assert (problem["type"], problem["status"]) == (f"urn:referent:problem:{slug}", status)
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["instance"] == response.request.url.path
    assert problem["retryable"] == (status in (429, 503, 504)) == ("retry-after" in response.headers)
    assert problem["stage"] == stage
    assert detail in problem["detail"]


JSON = {
    "no image": (in_json(b"words", "a"), 415, "unsupported-image", "decode", "JPEG, PNG, WEBP"),
    "truncated image": (in_json(IMAGE[:-200], "a"), 422, "damaged-image", "decode", "truncated"),
    "image bytes": (in_json(bytes(20_001), "a"), 413, "image-too-large", "decode", "the limit is 20000"),
    "image pixels": (in_json(jpeg(200, 200), "a"), 413, "image-too-large", "decode", "200x200"),
    "no base64": (GOOD | {"image": {"base64": "?"}}, 400, "malformed-request", "request", "not valid base64"),
    "no image source": (GOOD | {"image": {}}, 422, "invalid-request", "request", "give base64 or url"),
    "two sources": (GOOD | {"image": {"base64": "a", "url": "b"}}, 422, "invalid-request", "request", "one of them"),
    "URL": (GOOD | {"image": {"url": "http://a.example/"}}, 422, "image-url", "fetch", "REFERENT_IMAGE_URLS"),
    "many images": ({"images": [GOOD] * 3}, 422, "invalid-request", "request", "3 images; send 1 to 2"),
    "no images": ({"images": []}, 422, "invalid-request", "request", "images"),
    "image and images": (GOOD | {"images": [GOOD]}, 422, "invalid-request", "request", "image"),
    "unknown model of many": ({"images": [GOOD], "model": "maxi"}, 404, "unknown-model", "request", "'maxi'"),
    "long model": (GOOD | {"model": "m" * 201}, 422, "invalid-request", "request", "200 characters"),
    "many values": (GOOD | {"expressions": [1] * 20_000}, 422, "invalid-request", "request", "10000 commas"),
    "combining marks": (in_json(IMAGE, "a" + "\u0316\u0301" * 9000), 422, "invalid-expression", "preprocess", "18001"),
    "no expression": (GOOD | {"expressions": []}, 422, "expression-count", "request", "0 expressions; send 1 to 5"),
    "too many": (in_json(IMAGE, *"abcdef"), 422, "expression-count", "request", "6 expressions; send 1 to 5"),
    "empty expression": (in_json(IMAGE, " "), 422, "invalid-expression", "preprocess", "is empty"),
    "many tokens": (in_json(IMAGE, "a" * 500), 422, "invalid-expression", "preprocess", "tokens"),
    "many characters": (in_json(IMAGE, "a" * 1001), 422, "invalid-expression", "preprocess", "1001 characters"),
    "unknown model": (GOOD | {"model": "maxi"}, 404, "unknown-model", "request", "'maxi'; served are: tiny"),
    "no image field": ({"expressions": ["a"]}, 422, "invalid-request", "request", "image: Field required"),
    "misspelt field": (GOOD | {"modle": "tiny"}, 422, "invalid-request", "request", "modle"),
    "wrong type": (GOOD | {"expressions": "a"}, 422, "invalid-request", "request", "expressions"),
    "myriads of values": ([[]] * 10_002, 422, "invalid-request", "request", "more than 10000 commas"),
    "array": ([1], 422, "invalid-request", "request", ""),
}


@pytest.mark.parametrize(("body", "status", "slug", "stage", "detail"), JSON.values(), ids=JSON)
async def test_bad_values(
    client: httpx.AsyncClient, body: Any, status: int, slug: str, stage: str, detail: str
) -> None:
    assert_problem(await client.post("/v1/ground", json=body), status, slug, stage, detail)
    assert (await client.post("/v1/ground", json=GOOD)).status_code == 200


BODIES = {
    "broken JSON": (b'{"image"', "application/json", 400, "malformed-request"),
    "deep JSON": (b"[" * 10_000, "application/json", 400, "malformed-request"),
    "deep but readable": (b'{"image":' + b"[" * 150 + b"]" * 150 + b"}", "application/json", 422, "invalid-request"),
    "no UTF-8": (b'{"model": "\xff"}', "application/json", 400, "malformed-request"),
    "no boundary": (b"x", "multipart/form-data", 400, "malformed-request"),
    "broken form": (b"x", "multipart/form-data; boundary=b", 400, "malformed-request"),
    "lone surrogate": (b'{"model": "\\ud800"}', "application/json", 400, "malformed-request"),
    "not a number": (b'{"model": NaN}', "application/json", 400, "malformed-request"),
    "long number": (b'{"model": ' + b"9" * 100_000 + b"}", "application/json", 400, "malformed-request"),
    "text": (b"hello", "text/plain", 415, "unsupported-media-type"),
    "form of a page": (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
}


@pytest.mark.parametrize(("body", "media_type", "status", "slug"), BODIES.values(), ids=BODIES)
async def test_unreadable_bodies(
    client: httpx.AsyncClient, body: bytes, media_type: str, status: int, slug: str
) -> None:
    response = await client.post("/v1/ground", content=body, headers={"Content-Type": media_type})
    assert_problem(response, status, slug, "request")
    assert (await client.post("/v1/ground", json=GOOD)).status_code == 200


@pytest.mark.parametrize("lines", ["\n", "\r\n", " ", " \t"], ids=ascii)
async def test_base64_is_read_in_lines_too(start: Start, lines: str) -> None:
    digits = base64.b64encode(jpeg(600, 300)).decode()
    text = lines.join(digits[at : at + 61] for at in range(0, len(digits), 61)) + lines
    async with start() as client:
        for each in (text, f"data:image/jpeg;base64,{text}", f"DATA:;base64,{text}"):
            response = await client.post("/v1/ground", json=GOOD | {"image": {"base64": each}})
            assert response.json()["image"] == {"width": 600, "height": 300}


async def test_json_may_begin_with_a_byte_order_mark(client: httpx.AsyncClient) -> None:
    body = json.dumps(GOOD).encode()
    for path, mark, status in (
        ("/v1/ground", b"\xef\xbb\xbf", 200),
        ("/v1/ground", b"\xef\xbb\xbf" * 2, 400),
        ("/v1/ground", b"\xff\xfe", 400),
    ):
        response = await client.post(path, content=mark + body, headers={"Content-Type": "application/json"})
        assert response.status_code == status
    legacy = json.dumps({"image": GOOD["image"]["base64"], "text": "a"}).encode()
    response = await client.post(
        "/predict", content=b"\xef\xbb\xbf" + legacy, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200


@pytest.mark.parametrize("where", ["gateway.body.from_json", "gateway.body._parts", "gateway.body._validated"])
async def test_whatever_fails_in_reading_a_body_is_no_fault_of_ours(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("unknown encoding: secret")

    monkeypatch.setattr(where, fail)
    files = {"image": IMAGE, "expression": (None, b"a")}
    form = client.build_request("POST", "/v1/ground", files=files)
    request = form if "_parts" in where else client.build_request("POST", "/v1/ground", json=GOOD)
    with capture_logs() as lines:
        response = await client.send(request)
    assert_problem(response, 400, "malformed-request", "request", "can't be read")
    assert "secret" not in response.text
    assert isinstance(lines[0]["exc_info"], LookupError)


@pytest.mark.parametrize("host", ["[", "[::1", "a:99999", "a b", "xn--\xe9", ""])
async def test_odd_host_changes_no_answer(client: httpx.AsyncClient, host: str) -> None:
    headers = {"Host": host.encode("latin-1")}
    assert (await client.post("/v1/ground", json=GOOD, headers=headers)).status_code == 200
    assert (await client.post("/v1/ground", json=[], headers=headers)).status_code == 422


async def test_excluded_answer_is_a_problem(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ground", json=GOOD, headers={"Accept": "*/*;q=0"})
    assert_problem(response, 406, "not-acceptable", "request", "application/json and image/png")


async def test_encoded_body_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ground", json=GOOD, headers={"Content-Encoding": "gzip"})
    assert_problem(response, 415, "unsupported-media-type", "request", "encoded as 'gzip'")


async def test_bad_forms(client: httpx.AsyncClient) -> None:
    image = {"image": IMAGE}
    assert_problem(await client.post("/v1/ground", files=image), 422, "invalid-request", "request", "expression")
    fields = {"expression": (None, b"a"), "expresion": (None, b"b")}
    assert_problem(await client.post("/v1/ground", files=image | fields), 422, "invalid-request", "request")
    two = [("image", IMAGE), ("image", IMAGE), ("expression", (None, b"a"))]
    assert_problem(
        await client.post("/v1/ground", files=two), 400, "malformed-request", "request", "more than one image"
    )
    assert (await client.post("/v1/ground", files=image, data={"expression": "a"})).status_code == 200


async def test_body_over_the_limit_is_refused_announced_or_chunked(start: Start) -> None:
    async with start(max_image_bytes=1000) as client:
        body = bytes(1000 * 4 // 3 + 2**20 + 1)
        chunks = 0

        async def chunked() -> AsyncIterator[bytes]:
            nonlocal chunks
            for _ in range(1000):
                chunks += 1
                yield body[: 2**18]

        headers = {"Content-Type": "application/json"}
        for content in (body, chunked()):
            response = await client.post("/v1/ground", content=content, headers=headers)
            assert_problem(response, 413, "body-too-large", "request", str(len(body) - 1))
        assert chunks < 10
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("code", "message", "status", "slug"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input 'image'", 502, "inference-failed"),
        (grpc.StatusCode.INTERNAL, "onnx runtime error", 502, "inference-failed"),
        (UNAVAILABLE, "Exceeds maximum queue size", 429, "overloaded"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", 504, "deadline-exceeded"),
    ],
    ids=["invalid", "internal", "queue", "deadline"],
)
async def test_refusals_of_triton_are_told_without_its_words_and_not_repeated(
    client: httpx.AsyncClient, triton: FakeTriton, code: grpc.StatusCode, message: str, status: int, slug: str
) -> None:
    triton.requests.clear()
    triton.failures = [(code, message)]
    response = await client.post("/v1/ground", json=GOOD)
    assert_problem(response, status, slug, "inference")
    assert message not in response.text
    assert len(triton.requests) == 1
    assert (await client.post("/v1/ground", json=GOOD)).status_code == 200


async def test_lost_connection_is_tried_again_twice(client: httpx.AsyncClient, triton: FakeTriton) -> None:
    triton.requests.clear()
    triton.failures = [(UNAVAILABLE, "Socket closed")] * 2
    assert (await client.post("/v1/ground", json=GOOD)).status_code == 200
    triton.failures = [(UNAVAILABLE, "Socket closed")] * 3
    assert_problem(
        await client.post("/v1/ground", json=GOOD), 503, "inference-unavailable", "inference", "try again soon"
    )
    assert len(triton.requests) == 6


async def test_answers_that_are_no_numbers_are_no_boxes(client: httpx.AsyncClient, triton: FakeTriton) -> None:
    triton.box = (float("nan"), 0.5, 0.5, 0.5)
    assert_problem(await client.post("/v1/ground", json=GOOD), 502, "inference-failed", "inference")


async def test_deadline_names_the_stage_and_ends_the_inference(start: Start, triton: FakeTriton) -> None:
    async with start(deadline_s=1) as client:
        triton.holds = True
        response = await client.post("/v1/ground", json=GOOD)
        assert_problem(response, 504, "deadline-exceeded", "inference", "still in inference after 1 s")
        assert await asyncio.to_thread(triton.abandoned.wait, 30)


async def test_deadline_counts_decoding(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    async with start(deadline_s=1) as client:
        monkeypatch.setattr("referent.core.transform.ImageTransform.decode", lambda *_: release.wait(30))
        response = await client.post("/v1/ground", json=GOOD)
        release.set()
    assert_problem(response, 504, "deadline-exceeded", "decode")


async def test_client_that_leaves_ends_the_inference(url: str, triton: FakeTriton) -> None:
    labels = {"route": "/v1/ground", "code": "499"}
    before = REGISTRY.get_sample_value("referent_requests_total", labels) or 0
    triton.holds = True
    async with httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post("/v1/ground", json=GOOD))
        assert await asyncio.to_thread(triton.arrived.wait, 30)
        asking.cancel()
        assert await asyncio.to_thread(triton.abandoned.wait, 30)
        triton.holds = False
        assert (await client.post("/v1/ground", json=GOOD)).status_code == 200
    assert REGISTRY.get_sample_value("referent_requests_total", labels) == before + 1


async def test_fault_of_ours_is_told_without_its_text(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as client:
        monkeypatch.setattr("referent.core.transform.ImageTransform.decode", lambda *_: 1 // 0)
        with capture_logs() as lines:
            response = await client.post("/v1/ground", json=GOOD)
    assert_problem(response, 500, "internal-error", None, "log")
    assert "division" not in response.text
    assert isinstance(lines[0]["exc_info"], ZeroDivisionError)


async def test_router_answers_with_problems_too(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/nowhere"), 404, "not-found", "request")
    response = await client.get("/v1/ground")
    assert_problem(response, 405, "method-not-allowed", "request")
    assert response.headers["allow"] == "POST"


async def test_predict_refuses_with_problems(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/predict", json={"text": "a"}), 422, "invalid-request", "request", "image")
    empty = {"image": "", "text": "a"}
    assert_problem(await client.post("/predict", json=empty), 422, "invalid-request", "request", "image")
    body = {"image": "?", "text": "a"}
    assert_problem(await client.post("/predict", json=body), 400, "malformed-request", "request")
    assert_problem(await client.post("/predict", data=body), 415, "unsupported-media-type", "request")


def test_every_problem_is_documented(make_app: Any) -> None:
    app: FastAPI = make_app()
    document = app.openapi()
    answers = document["paths"]["/v1/ground"]["post"]["responses"]
    assert set(answers) == {"200", *(str(kind.status) for kind in TABLE.values())} - {"499"}
    assert answers["413"]["description"] == "The request is too large; The image is too large"
    for kind in TABLE.values():
        if kind.status != 499:
            example = answers[str(kind.status)]["content"]["application/problem+json"]["examples"][kind.slug]["value"]
            assert example["title"] == kind.title
