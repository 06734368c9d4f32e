"""Fetching against a hostile server on real sockets, with names resolved as each test says."""

import asyncio
import gzip
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trustme

from referent.core.fetch import DirectTransport, FetchError, FetchPolicy, Resolver, fetch, is_public, system_resolver

pytestmark = pytest.mark.anyio
OPEN = FetchPolicy()
PUBLIC, LOOPBACK = "93.184.215.14", "127.0.0.1"
Handle = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def serve(handle: Handle, address: str = LOOPBACK, port: int = 0, tls: ssl.SSLContext | None = None):
    """A server that passes each request's head to `handle`; gives its port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle((await reader.readuntil(b"\r\n\r\n")).decode(), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(talk, address, port, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


def answering(head: str, body: bytes = b"") -> Handle:
    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\nConnection: close\r\n\r\n".encode() + body)

    return handle


OK = answering("200 OK\r\nContent-Type: image/png\r\nContent-Length: 7", b"picture")


def resolves(*answers: list[str]) -> Resolver:
    """Gives the answers in turn, the last one for ever."""
    left = list(answers)

    async def resolver(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolver


async def get(url: str, port: int | None = None, **changes) -> bytes:
    """Fetches from the host `inside`, which may be private here, unless told otherwise."""
    policy = FetchPolicy(private_hosts=frozenset({"inside"}), ports=frozenset({80, 443} | ({port} if port else set())))
    options = {"max_bytes": 1000, "deadline_s": 5, "policy": policy, "resolver": resolves([LOOPBACK])}
    return await fetch(url, **{**options, **changes})


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


NOT_PUBLIC = [
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200", "169.254.169.254",
    "168.63.129.16", "192.0.0.192", "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1",
    "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1",
    "64:ff9b:1::8.8.8.8", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "fe80::1", "fe80::1%eth0", "fc00::1",
    "fd00:ec2::254", "fec0::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_hosts_at_internal_addresses_are_refused_whatever_else_they_resolve_to(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address]):
        with pytest.raises(FetchError, match=r"named\.test has no address, or one that is not public") as error:
            await get("http://named.test/", resolver=resolves(addresses))
        assert address not in str(error.value)


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "localhost", "[::1]",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[fe80::1%25lo]", "127.0.0.1.", "0"],
)  # fmt: skip
async def test_ways_to_write_loopback_are_refused(host: str) -> None:
    with pytest.raises(FetchError):
        await get(f"http://{host}/", resolver=system_resolver)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://inside/a", "gopher://inside/", "data:image/png;base64,AAAA", "//inside/a", "inside",
     "", "http://", "http:///a", "http://[::1", "http://x\n/", "http://\ud800/", "http://0177.0.0.1/",
     "http://１２７.０.０.１/", "http://inside:99999999/", "http://xn--a.example/", "http://xn--\u00fc/", "http://a..b/",
     "http://xn--0.example/", f"http://{'a' * 64}.example/", "http://\u2024/", "http://%00/", "http://xn--\u0661-/"],
    ids=ascii,
)  # fmt: skip
async def test_what_is_no_http_url_with_a_host_is_refused(url: str) -> None:
    with pytest.raises(FetchError):
        await get(url)


@pytest.mark.parametrize("url", ["http://me:secret@inside/", "http://me@inside/", "http://inside%2f@other/"])
async def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(FetchError, match="user name or password") as error:
        await get(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("port", [0, 22, 6379, 8080])
async def test_ports_are_limited(port: int) -> None:
    with pytest.raises(FetchError, match=f"port {port} "):
        await get(f"http://inside:{port}/")


@pytest.mark.parametrize("url", ["http://other.test/", "http://a.good.test/", "http://good.test.evil.test/"])
async def test_hosts_off_the_list_are_not_even_looked_up(url: str) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        raise AssertionError(host)

    with pytest.raises(FetchError, match="not among the hosts"):
        await get(url, resolver=resolver, policy=FetchPolicy(frozenset({"good.test"})))


async def test_listed_host_with_an_internal_address_is_refused_unless_said_to_be_private() -> None:
    with pytest.raises(FetchError, match="not public"):
        await get("http://inside/", policy=FetchPolicy(allowed_hosts=frozenset({"inside"})))
    async with serve(OK) as port:
        listed = FetchPolicy(frozenset({"inside"}), frozenset({"inside"}), frozenset({port}))
        assert await get(f"http://INSIDE.:{port}/", policy=listed) == b"picture"


@pytest.mark.parametrize("error", [OSError("unknown"), UnicodeError("label too long")])
async def test_unknown_hosts_are_told_as_internal_ones_are(error: Exception) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        raise error

    with pytest.raises(FetchError, match="has no address, or one that is not public"):
        await get("http://named.test/", resolver=resolver)


async def test_second_answer_of_a_rebinding_name_is_never_connected_to() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.url.host} as {request.headers['host']}, {request.extensions['sni_hostname']}")
        return httpx.Response(200, stream=httpx.ByteStream(b"picture"))

    transport = httpx.MockTransport(answer)
    rebinding = resolves([PUBLIC], [LOOPBACK])
    assert await get("https://evil.test/", resolver=rebinding, make_transport=lambda: transport) == b"picture"
    assert asked == [f"{PUBLIC} as evil.test, evil.test"]
    with pytest.raises(FetchError, match="not public"):
        await get("https://evil.test/", resolver=rebinding, make_transport=lambda: transport)
    assert len(asked) == 1


INTERNAL = [
    "http://127.0.0.1/",
    "http://[::1]/",
    "http://169.254.169.254/latest/meta-data/",
    "//2130706433/",
    "http://0x7f.1/",
]
FORBIDDEN = [
    "file:///etc/passwd",
    "ftp://inside/",
    "http://me:pw@inside/",
    "http://inside:22/",
    "http://[",
    "http://\ud800",
    "http:////h]%",
]


@pytest.mark.parametrize("location", [*INTERNAL, *FORBIDDEN], ids=ascii)
async def test_redirects_are_checked_like_the_url(location: str) -> None:
    reached = []

    async def internal(request: str, writer: asyncio.StreamWriter) -> None:
        reached.append(request)

    async def resolver(host: str, port: int) -> list[str]:
        return [LOOPBACK] if host == "inside" else await system_resolver(host, port)

    redirecting = answering(f"302 Found\r\nLocation: {location}".encode("utf-8", "surrogatepass").decode("latin-1"))
    async with serve(redirecting) as port, serve(internal):
        with pytest.raises(FetchError):
            await get(f"http://inside:{port}/", port, resolver=resolver)
    assert not reached


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
