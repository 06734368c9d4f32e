"""Fetches a URL that a stranger gave, without letting the stranger reach our network through it (SSRF).

At each hop the host is resolved once, all its addresses must be public, and the connection goes to the first of those
checked addresses that answers; TLS is verified against the host's name. Proxies, cookies and credentials of the
environment are not used.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import SOCK_STREAM, getaddrinfo
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

MAX_REDIRECTS = 3
MAX_HEAD_BYTES = 65_536  # of an answer, and of interim answers (1xx) before it
READ_BYTES = 8192
CONNECT_TIMEOUT_S = 2  # then the next address is tried
DEFAULT_PORTS = {"http": 80, "https": 443}
GLOBAL_UNICAST = ip_network("2000::/3")  # all IPv6 that is assigned; the rest is local, multicast or reserved
NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address in the last 32 bits
# not public, though `is_global` says so: Azure's metadata service, and IETF's own block, which Oracle's is part of
NOT_PUBLIC = (ip_network("168.63.129.16/32"), ip_network("192.0.0.0/24"))

# not the event loop's own threads: lookups at a stranger's slow name server would delay everything else there
LOOKUPS = ThreadPoolExecutor(8, thread_name_prefix="lookup")

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
MakeTransport = Callable[[], httpx.AsyncBaseTransport]


class FetchError(ValueError):
    """The URL may not or can't be fetched; the message may be shown to the caller and names no address."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched. Hosts are written as in a URL: lower case, no port; IPv6 addresses without brackets."""

    allowed_hosts: frozenset[str] | None = None  # only these; None: any
    private_hosts: frozenset[str] = frozenset()  # these may have addresses that are not public
    ports: frozenset[int] = frozenset(DEFAULT_PORTS.values())
    media_types: frozenset[str] | None = None  # of the answer; None: any


async def system_resolver(host: str, port: int) -> list[str]:
    """The addresses of a host as the operating system knows them. Raises OSError, UnicodeError."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(LOOKUPS, lambda: getaddrinfo(host, port, type=SOCK_STREAM))
    return [str(address[0]) for *_, address in found]


class DirectTransport(httpx.AsyncHTTPTransport):
    """A transport without proxies and certificates of the environment; it reads as `_Reading` does."""

    def __init__(self, tls: SSLContext | None = None) -> None:
        super().__init__(verify=tls or _tls(), trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(ssl_context=tls or _tls(), network_backend=_Network())


class _Network(httpcore.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Reading(await super().connect_tcp(*args, **options))


class _Reading(httpcore.AsyncNetworkStream):
    """Reads little at a time, since tiny parts of an answer (interim answers, chunks) take long to parse. Until
    `head_bytes_left` is set to infinity, it reads no more than the head of an answer may have."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, head_bytes_left: float = MAX_HEAD_BYTES) -> None:
        self._stream, self.head_bytes_left = stream, head_bytes_left

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.head_bytes_left <= 0:
            raise httpcore.RemoteProtocolError("no answer among its interim answers")
        data = await self._stream.read(min(max_bytes, READ_BYTES), timeout)
        self.head_bytes_left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Reading(await self._stream.start_tls(*args, **options))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


async def fetch(
    url: str,
    *,
    max_bytes: int,
    deadline_s: float,
    policy: FetchPolicy,
    resolver: Resolver = system_resolver,
    make_transport: MakeTransport = DirectTransport,
    on_bytes: Callable[[int], None] = lambda size: None,
) -> bytes:
    """The body behind an http(s) URL, through up to `MAX_REDIRECTS` redirects, each checked like the URL itself.

    `deadline_s` is for everything together. `on_bytes` gets the size of each piece of the body as it arrives; an
    exception from it ends the fetch. Raises `FetchError`.
    """
    target: str | httpx.URL = url
    read = partial(_body, max_bytes=max_bytes, policy=policy, on_bytes=on_bytes)
    try:
        async with asyncio.timeout(deadline_s):
            for _ in range(MAX_REDIRECTS + 1):
                answer = await _hop(_parsed(target), policy, resolver, make_transport, read)
                if isinstance(answer, bytes):
                    return answer
                target = answer
    except TimeoutError:
        raise FetchError(f"the URL gave no whole answer within {deadline_s:.3g} s", retryable=True) from None
    except FetchError:
        raise
    except (httpx.InvalidURL, ValueError) as error:  # a malformed URL or answer is the caller's error, not ours
        raise FetchError(f"the URL can't be fetched ({type(error).__name__})") from error
    raise FetchError(f"the URL leads through more than {MAX_REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address belongs to the public internet. Raises ValueError if it is not an address."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        embedded = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip.sixtofour
        return is_public(str(embedded)) if embedded else ip in GLOBAL_UNICAST and ip.is_global
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NOT_PUBLIC)


def _parsed(target: str | httpx.URL) -> httpx.URL:
    try:
        url = httpx.URL(target)
        url.host  # noqa: B018  decoded only here; raises for broken punycode
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(f"not a URL: {error}") from None
    if url.scheme not in DEFAULT_PORTS or not url.host:
        raise FetchError("the URL can't be fetched: give one that starts with http:// or https:// and a host")
    if url.userinfo:
        raise FetchError("the URL holds a user name or password: give one without")
    return url


async def _hop(
    url: httpx.URL,
    policy: FetchPolicy,
    resolver: Resolver,
    make_transport: MakeTransport,
    read: Callable[[httpx.Response, str], Awaitable[bytes]],
) -> bytes | httpx.URL:
    """The body, or the URL that the answer redirects to."""
    host = url.raw_host.decode().rstrip(".").lower()
    headers = {"Host": url.netloc.decode(), "Accept-Encoding": "identity", "User-Agent": "referent"}
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    fault: httpx.HTTPError | None = None
    for address in await _checked_addresses(url, host, policy, resolver):
        pinned = url.copy_with(host=address, fragment=None)
        try:
            async with (
                # a client of its own: it must not reuse cookies or connections of another host at this address
                httpx.AsyncClient(transport=make_transport(), trust_env=False, timeout=timeout) as client,
                client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host}) as response,
            ):
                if isinstance(stream := response.extensions.get("network_stream"), _Reading):
                    stream.head_bytes_left = math.inf
                if response.has_redirect_location:
                    return _parsed(_joined(url, response.headers["location"]))
                return await read(response, host)
        except httpx.HTTPError as error:
            fault = error
            if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                break
    # the text of `fault` may name the address
    raise FetchError(f"{host} can't be reached or broke off ({type(fault).__name__})", retryable=True)


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(f"{url.host} redirects to what is not a URL: {error}") from None


async def _checked_addresses(url: httpx.URL, host: str, policy: FetchPolicy, resolver: Resolver) -> Sequence[str]:
    if policy.allowed_hosts is not None and host not in policy.allowed_hosts:
        raise FetchError(f"{host} is not among the hosts that may be fetched from")
    port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    if port not in policy.ports:
        raise FetchError(f"port {port} is not among those that may be fetched from: {sorted(policy.ports)}")
    try:
        addresses = await resolver(host, port)
    except (OSError, ValueError):  # ValueError: a name that no host can have
        addresses = []
    if not addresses or not (host in policy.private_hosts or all(map(is_public, addresses))):
        # one message for both, so that callers can't find out which names exist in our network
        raise FetchError(f"{host} has no address, or one that is not public")
    return addresses


async def _body(
    response: httpx.Response, host: str, max_bytes: int, policy: FetchPolicy, on_bytes: Callable[[int], None]
) -> bytes:
    if (status := response.status_code) != 200:
        raise FetchError(f"{host} answers with status {status}", retryable=status in (408, 429) or status >= 500)
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if policy.media_types is not None and media_type not in policy.media_types:
        wanted = ", ".join(sorted(policy.media_types))
        raise FetchError(f"{host} answers with content type {media_type[:80]!r}; wanted is one of {wanted}")
    if (encoding := response.headers.get("content-encoding", "identity")).lower() != "identity":
        raise FetchError(f"{host} answers in content encoding {encoding[:80]!r}, which was not asked for")
    announced, body = int(response.headers.get("content-length", 0)), bytearray()
    if announced <= max_bytes:
        async for chunk in response.aiter_raw():
            on_bytes(len(chunk))
            body += chunk
            if len(body) > max_bytes:
                break
            await asyncio.sleep(0)  # lets other tasks run: thousands of one-byte chunks may be there already
    if max(announced, len(body)) > max_bytes:
        raise FetchError(f"{host} answers with more than {max_bytes} bytes: give the URL of a smaller image")
    return bytes(body)


@cache
def _tls() -> SSLContext:
    return httpx.create_ssl_context(trust_env=False)  # reading the certificates takes some 20 ms
