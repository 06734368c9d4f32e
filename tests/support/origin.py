"""A server on real sockets that answers as a test says, and a fetch from it."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

from referent.core.fetch import FetchPolicy, Resolver, fetch

LOOPBACK = "127.0.0.1"
Handle = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


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
