"""Connections to the service's own server: each ends in time, and its answer arrives."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from gateway.connections import Connection
from gateway.server import Server
from gateway.settings import Settings
from tests.support.fake_triton import FakeTriton
from tests.support.gateway import serving
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio
MakeApp = Callable[..., FastAPI]
GOOD = json.dumps(in_json(jpeg(), "the queen")).encode()
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> "asyncio.Queue[Connection]":
    """The connections that the server no longer has."""
    queue: asyncio.Queue[Connection] = asyncio.Queue()
    connection_lost = Connection.connection_lost

    def noted(self: Connection, exc: Exception | None) -> None:
        connection_lost(self, exc)
        queue.put_nowait(self)

    monkeypatch.setattr(Connection, "connection_lost", noted)
    return queue


def post(body: bytes = GOOD, media_type: str = "application/json", length: int | None = None, more: str = "") -> bytes:
    head = f"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: {media_type}\r\n{more}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


EARLY = {
    "no such path": (b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n", 404),
    "media type": (post(b"", "text/plain", 9_000_000), 415),
    "too large": (post(b"", length=1_000_000_000), 413),
    "media type, in chunks": (
        b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
        415,
    ),
    "body of a GET": (b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n", 200),
    "no HTTP": (b"hello\r\n\r\n", 400),
}


@pytest.mark.parametrize(("head", "status"), EARLY.values(), ids=EARLY)
async def test_connection_ends_after_an_answer_that_came_before_the_end_of_the_body(
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    lost: "asyncio.Queue[Connection]",
    head: bytes,
    status: int,
) -> None:
    monkeypatch.setattr("gateway.connections.QUIET_S", 0.2)
    async with serving(make_app) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(head)
        writer.write(b"a")
        answer = await reader.read()  # to the end
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"\r\nconnection: close\r\n" in answer.lower()
        await lost.get()


NO_HTTP = {
    "text": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "a space too many": b"GET /livez  HTTP/1.1\r\nHost: a\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "a head too long": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
    "two lengths": b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a chunk without a size": (
        b"POST /v1/ground HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nhello\r\n"
    ),
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_is_a_problem(make_app: MakeApp, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(make_app) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["type"] == "urn:referent:problem:malformed-request"
    assert not [record for record in caplog.records if record.exc_info]


async def test_client_that_goes_on_sending_after_its_answer_is_cut_off(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.LINGER_S", 0.3)
    async with serving(make_app) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(post(b"", length=1_000_000_000))
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            await send_for_ever(writer)


async def send_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(1000))
        await writer.drain()


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 65_536):
        yield body[start : start + 65_536]
        await asyncio.sleep(0)


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({"max_image_bytes": 1000}, {}, 413),
        ({}, {"Content-Type": "text/plain"}, 415),
        ({"rate_limit": "1/hour"}, {}, 429),
    ],
    ids=["413", "415", "429"],
)
async def test_refusal_reaches_a_client_that_is_still_sending(
    make_app: MakeApp, settings: dict[str, object], headers: dict[str, str], status: int, announced: bool
) -> None:
    body = bytes(8_000_000)
    async with (
        serving(make_app, **settings) as (_, (host, port)),
        httpx.AsyncClient(base_url=f"http://{host}:{port}") as client,
    ):
        for _ in range(3):
            content = body if announced else chunks(body)
            response = await client.post(
                "/v1/ground", content=content, headers={"Content-Type": "application/json", **headers}
            )
            if status != 429:
                assert response.status_code == status
        assert response.status_code == status
        assert (await client.get("/livez")).status_code == 200


def noise(side: int) -> bytes:
    """A picture whose PNG is much longer than what sockets hold."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=30)
    return buffer.getvalue()


async def test_answer_that_nobody_reads_is_in_flight_until_it_is_given_up(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, lost: "asyncio.Queue[Connection]"
) -> None:
    monkeypatch.setattr("gateway.connections.UNREAD_S", 1)
    asked = post(json.dumps(in_json(noise(1800), "the queen")).encode(), more="Accept: image/png\r\n")
    async with serving(make_app, max_inflight_requests=1) as (_, (host, port)):
        with socket.socket() as sleeper:
            sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sleeper.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sleeper, (host, port))
            await loop.sock_sendall(sleeper, asked)
            assert (await loop.sock_recv(sleeper, 12)).endswith(b"200")
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
                response = await client.post("/v1/ground", content=GOOD, headers={"Content-Type": "application/json"})
                assert response.status_code == 429
                while (await lost.get()).client != sleeper.getsockname():
                    pass  # the other's own connection
                response = await client.post("/v1/ground", content=GOOD, headers={"Content-Type": "application/json"})
                assert response.status_code == 200


async def test_answer_is_whole_where_it_is_read_slowly(make_app: MakeApp) -> None:
    asked = post(
        json.dumps(in_json(noise(900), "the queen")).encode(), more="Accept: image/png\r\nConnection: close\r\n"
    )
    async with serving(make_app) as (_, address):
        reader, writer = await asyncio.open_connection(*address, limit=4096)
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        while piece := await reader.read(20_000):
            body += piece
            await asyncio.sleep(0)
    assert f"content-length: {len(body)}".encode() in head
    assert Image.open(io.BytesIO(body)).size == (900, 900)


@pytest.fixture
def clients() -> Iterator[Callable[[tuple[str, int]], socket.socket]]:
    """Connects without a turn of the event loop, so that nobody has accepted the connection yet."""
    made = []

    def connect(address: tuple[str, int]) -> socket.socket:
        made.append(socket.create_connection(address))
        made[-1].setblocking(False)
        return made[-1]

    yield connect
    for each in made:
        each.close()


async def answer_to(client: socket.socket) -> bytes:
    """What comes until the end of the connection. Raises ConnectionResetError."""
    loop, answer = asyncio.get_running_loop(), b""
    while piece := await loop.sock_recv(client, 65_536):
        answer += piece
    return answer


async def test_connections_made_before_the_end_are_answered(
    make_app: MakeApp, clients: Callable[[tuple[str, int]], socket.socket]
) -> None:
    async with serving(make_app) as (server, address):
        waiting = [clients(address) for _ in range(20)]
        for each in waiting[:10]:
            each.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
        server.should_exit = True
        for each in waiting[:10]:
            assert (await answer_to(each)).startswith(b"HTTP/1.1 200 ")
        for each in waiting[10:]:  # connected, and only now ask
            each.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
        for each in waiting[10:]:
            assert (await answer_to(each)).startswith(b"HTTP/1.1 200 ")
    with pytest.raises(ConnectionRefusedError):
        clients(address)


async def test_backlog_is_accepted_before_the_listener_closes(
    make_app: MakeApp, clients: Callable[[tuple[str, int]], socket.socket]
) -> None:
    server = Server(make_app(), Settings())
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await server.startup([listener])
        waiting = [clients(listener.getsockname()) for _ in range(30)]
        for each in waiting:
            each.send(GET.replace(b"Host", b"Connection: close\r\nHost"))
        # no turn of the loop in between: none of them is accepted
        ending = asyncio.create_task(server.shutdown([listener]))
        for each in waiting:
            assert (await answer_to(each)).startswith(b"HTTP/1.1 200 ")
        await ending


async def test_idle_connections_make_room_and_requests_do_not(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, lost: "asyncio.Queue[Connection]", triton: FakeTriton
) -> None:
    monkeypatch.setattr(Connection, "max_connections", 2)
    async with serving(make_app) as (_, address):
        triton.holds = True
        busy = await asyncio.open_connection(*address)
        busy[1].write(post())
        assert await asyncio.to_thread(triton.arrived.wait, 30)
        for _ in range(5):  # the one before is idle
            reader, writer = await asyncio.open_connection(*address)
            writer.write(GET)
            assert b" 200 " in await reader.readline()
        assert lost.qsize() == 4
        triton.release()
        assert b" 200 " in await busy[0].readline()
