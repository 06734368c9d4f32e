"""Fetching from a hostile server on real sockets."""

import asyncio
import gzip
import ssl

import pytest
import trustme

from referent.core.fetch import DirectTransport, FetchError, FetchPolicy
from tests.support.origin import LOOPBACK, OK, answering, get, resolves, serve

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_body_comes_from_the_checked_address_under_the_hosts_own_name() -> None:
    heads = []

    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        heads.append(request.lower())
        await OK(request, writer)

    async with serve(handle) as port:
        assert await get(f"http://inside:{port}/a?b=c#d", port) == b"picture"
    assert heads[0].startswith("get /a?b=c http")
    assert f"host: inside:{port}\r\n" in heads[0]
    assert "accept-encoding: identity\r\n" in heads[0]
    assert "cookie" not in heads[0]


@pytest.mark.parametrize(("redirects", "arrives"), [(3, True), (4, False)])
async def test_redirects_are_followed_three_times(redirects: int, arrives: bool) -> None:
    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        number = int(request.split()[1].strip("/"))
        answer = answering(f"301 Moved\r\nSet-Cookie: a=b\r\nLocation: /{number - 1}") if number else OK
        assert "cookie" not in request.lower()
        await answer(request, writer)

    async with serve(handle) as port:
        if arrives:
            assert await get(f"http://inside:{port}/{redirects}", port) == b"picture"
        else:
            with pytest.raises(FetchError, match="more than 3 redirects"):
                await get(f"http://inside:{port}/{redirects}", port)


ANSWERS = {
    "announced too large": ("200 OK\r\nContent-Length: 1001", bytes(1001), "more than 1000 bytes", False),
    "too large": ("200 OK", bytes(1001), "more than 1000 bytes", False),
    "gzip bomb": ("200 OK\r\nContent-Encoding: gzip", gzip.compress(bytes(100_000)), "content encoding 'gzip'", False),
    "broken off": ("200 OK\r\nContent-Length: 100", b"part", "broke off", True),
    "no HTTP": ("what", b"", "broke off", True),
    "endless head": ("200 OK\r\nX: " + "x" * 200_000, b"", "broke off", True),
    "not found": ("404 Not Found", b"", "status 404", False),
    "not modified": ("304 Not Modified", b"", "status 304", False),
    "redirect to nowhere": ("302 Found", b"", "status 302", False),
    "busy": ("503 Busy", b"", "status 503", True),
}  # fmt: skip


@pytest.mark.parametrize(("head", "body", "message", "retryable"), ANSWERS.values(), ids=ANSWERS)
async def test_bad_answers_are_refused(head: str, body: bytes, message: str, retryable: bool) -> None:
    async with serve(answering(head, body)) as port:
        with pytest.raises(FetchError, match=message) as error:
            await get(f"http://inside:{port}/", port)
    assert error.value.retryable == retryable
    assert LOOPBACK not in str(error.value)


@pytest.mark.parametrize(
    "piece",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 \r\nA: b\r\n\r\n",
    ],
    ids=["103", "100", "102"],
)
async def test_endless_interim_answers_are_not_waited_for(piece: bytes) -> None:
    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(piece * 100)
            await writer.drain()

    async with serve(handle) as port:
        with pytest.raises(FetchError, match="broke off"):
            await get(f"http://inside:{port}/", port, deadline_s=60)


async def test_tiny_chunks_leave_others_their_turn() -> None:
    turns, ended = 0, False

    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 900 + b"0\r\n\r\n")

    async def others() -> None:
        nonlocal turns
        while not ended:
            turns += 1
            await asyncio.sleep(0)

    async with serve(handle) as port:
        waiting = asyncio.create_task(others())
        assert await get(f"http://inside:{port}/", port) == b"a" * 900
        ended = True
        await waiting
    assert turns > 900


async def test_few_interim_answers_are_read_over() -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 9

    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await OK(request, writer)

    async with serve(handle) as port:
        assert await get(f"http://inside:{port}/", port) == b"picture"


async def test_endless_body_is_cut_at_the_limit() -> None:
    sent = 0

    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(500))
            await writer.drain()
            sent += 500

    async with serve(handle) as port:
        with pytest.raises(FetchError, match="more than 1000 bytes"):
            await get(f"http://inside:{port}/", port)
    assert sent < 50_000_000


@pytest.mark.parametrize("head", ["", "HTTP/1.1 200 OK\r\n\r\n"], ids=["head", "body"])
async def test_slow_drip_ends_at_the_deadline(head: str) -> None:
    gone = asyncio.Event()

    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        try:
            for character in head + "x" * 1000:
                writer.write(character.encode())
                await writer.drain()
                await asyncio.sleep(0.02)
        finally:
            gone.set()

    async with serve(handle) as port:
        with pytest.raises(FetchError, match=r"within 0\.2 s") as error:
            await get(f"http://inside:{port}/", port, deadline_s=0.2)
        await asyncio.wait_for(gone.wait(), 30)
    assert error.value.retryable


async def test_deadline_counts_all_hops_and_lookups() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(FetchError, match=r"within 0\.1 s"):
        await get("http://inside/", deadline_s=0.1, resolver=never)


@pytest.mark.parametrize(
    ("media_type", "taken"), [("image/png", True), ("IMAGE/PNG; a=b", True), ("text/html", False), ("", False)]
)
async def test_media_type_is_one_of_the_policy(media_type: str, taken: bool) -> None:
    async with serve(answering(f"200 OK\r\nContent-Type: {media_type}", b"picture")) as port:
        policy = FetchPolicy(None, frozenset({"inside"}), frozenset({port}), frozenset({"image/png"}))
        if taken:
            assert await get(f"http://inside:{port}/", policy=policy) == b"picture"
        else:
            with pytest.raises(FetchError, match="content type"):
                await get(f"http://inside:{port}/", policy=policy)


async def test_next_address_is_tried_where_the_first_takes_no_connection() -> None:
    async with serve(OK, address="127.0.0.2") as port:
        addresses = [LOOPBACK, "127.0.0.2", "127.0.0.3"]
        assert await get(f"http://inside:{port}/", port, resolver=resolves(addresses)) == b"picture"


async def test_address_that_breaks_off_is_not_asked_again_elsewhere() -> None:
    async def refuse(request: str, writer: asyncio.StreamWriter) -> None:
        raise AssertionError(request)

    async with serve(answering("what")) as port, serve(refuse, "127.0.0.2", port):
        with pytest.raises(FetchError, match="broke off"):
            await get(f"http://inside:{port}/", port, resolver=resolves([LOOPBACK, "127.0.0.2"]))


async def test_who_counts_the_bytes_can_end_the_fetch() -> None:
    def enough(size: int) -> None:
        raise MemoryError(size)

    async with serve(OK) as port:
        with pytest.raises(MemoryError, match="7"):
            await get(f"http://inside:{port}/", port, on_bytes=enough)


async def test_closed_port_is_told_without_the_address() -> None:
    async with serve(OK) as port:
        pass
    with pytest.raises(FetchError, match=r"inside can't be reached") as error:
        await get(f"http://inside:{port}/", port)
    assert error.value.retryable


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(OK) as port, serve(answering("200 OK", b"proxy")) as proxy_port:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
        assert await get(f"http://inside:{port}/", port) == b"picture"


@pytest.mark.parametrize(("host", "trusted"), [("inside", True), ("other", False)])
async def test_tls_is_verified_against_the_host_not_the_address(host: str, trusted: bool) -> None:
    authority, server, client = (
        trustme.CA(),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    authority.issue_cert("inside").configure_cert(server)
    authority.configure_trust(client)
    async with serve(OK, tls=server) as port:
        asking = get(
            f"https://{host}:{port}/",
            policy=FetchPolicy(private_hosts=frozenset({host}), ports=frozenset({port})),
            make_transport=lambda: DirectTransport(client),
        )
        if trusted:
            assert await asking == b"picture"
        else:
            with pytest.raises(FetchError, match=r"can't be reached or broke off \(ConnectError\)"):
                await asking
