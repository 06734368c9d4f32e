"""Traces: the caller's goes on through the gateway's span to Triton; none where no collector is set."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support.fake_triton import FakeTriton
from tests.support.gateway import Start
from tests.support.http_server import serving
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio
GOOD = in_json(jpeg(), "the secret")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
Exports = list[tuple[str, bytes]]


@pytest.fixture
def collector() -> Iterator[tuple[str, Exports]]:
    """Its URL, and the paths and bodies that it got."""
    exports: Exports = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            exports.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, exports


async def test_span_joins_the_callers_trace_and_triton_the_span(
    start: Start, triton: FakeTriton, collector: tuple[str, Exports]
) -> None:
    url, exports = collector
    async with start(otlp_endpoint=url) as client:
        assert (await client.post("/v1/ground", json=GOOD, headers=PARENT)).status_code == 200
        sent = triton.requests[-1]["metadata"]["traceparent"].split("-")
    [(path, body)] = exports
    assert path == "/v1/traces"
    assert sent[1] == TRACE
    assert sent[2] != PARENT["traceparent"].split("-")[2]
    assert bytes.fromhex(TRACE) in body
    assert bytes.fromhex(sent[2]) in body
    assert b"/v1/ground" in body
    assert b"secret" not in body


async def test_nothing_is_traced_without_a_collector(start: Start, triton: FakeTriton) -> None:
    async with start() as client:
        assert (await client.post("/v1/ground", json=GOOD, headers=PARENT)).status_code == 200
    assert "traceparent" not in triton.requests[-1]["metadata"]
