"""What may be fetched, and from where, with names resolved as each test says."""

import asyncio

import httpx
import pytest

from referent.core.fetch import FetchError, FetchPolicy, is_public, system_resolver
from tests.support.origin import LOOPBACK, OK, answering, get, resolves, serve

pytestmark = pytest.mark.anyio
PUBLIC = "93.184.215.14"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
