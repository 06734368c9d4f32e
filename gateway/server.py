"""Runs the gateway with settings from the environment: python -m gateway"""

import asyncio
import ctypes
import gc
import math
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import start_http_server

from gateway.app import create_app
from gateway.connections import Connection
from gateway.settings import Settings
from gateway.telemetry import configure_logging

HEAD_TIMEOUT_S = 5  # from the connection, or the answer before, to the end of a request's head
RESERVED_FILES = 64  # descriptors for everything except connections: models, logs, Triton, look-ups
MAX_FILES = 65_536
BACKLOG_S, BACKLOG_TRIES = 0.01, 200  # between checks whether all waiting connections were accepted
SO_ATTACH_FILTER = 26
SWITCH_S = 0.001  # after which a busy thread lets the event loop run; the default of 5 ms adds up with several threads
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# a filter for the listening socket that drops new connections: packets whose TCP flags are SYN without ACK
NO_NEWCOMERS = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))


def main() -> None:
    try:
        settings = Settings()
        configure_logging()
        log = structlog.get_logger("gateway")
        with listen(settings) as listener, suppress(KeyboardInterrupt):
            run(settings, listener, lambda: log.info("ready", url=url_of(listener)))
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(str(error))


def listen(settings: Settings) -> socket.socket:
    """Serves metrics from now on, and opens the socket for `run`. Raises OSError naming a port that is taken."""
    if settings.metrics_port:
        try:
            start_http_server(settings.metrics_port, settings.host)
        except OSError as error:
            raise OSError(f"metrics port {settings.metrics_port}: {error}; REFERENT_METRICS_PORT sets it") from error
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, settings.port), family=family)
    # asyncio sets it only on its own sockets; without it, an answer in two writes waits 40 ms for the client's ACK
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine finds the service."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def run(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM, as `Server` says, and raises KeyboardInterrupt then."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _limit_connections()
    _give_memory_back()
    sys.setswitchinterval(SWITCH_S)
    app = create_app(settings, on_ready)
    gc.collect()
    gc.freeze()  # objects that live as long as the process need no collection: it would stop all threads for 85 ms
    Server(app, settings).run([listener])


class Server(uvicorn.Server):
    """On SIGTERM, /readyz turns 503 and all requests are served for the grace period. After that, or on SIGINT at once,
    no connection is accepted, requests in flight are answered, and the server ends. Another signal ends the grace
    period.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                timeout_keep_alive=HEAD_TIMEOUT_S,
                proxy_headers=False,  # anybody could send X-Forwarded-For
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.deadline_s),
            )
        )
        self._state, self._grace_s, self._grace_ends = app.state, settings.drain_grace_s, math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started:
            self._state.registry.draining = True
        if sig == signal.SIGTERM and self._grace_ends == math.inf and self._grace_s:
            self._grace_ends = time.monotonic() + self._grace_s
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """First accepts the connections that are waiting, since closing the socket would reset them."""
        for listener in sockets or []:
            _accept_no_more(listener)
            tries = BACKLOG_TRIES  # without the filter, new connections may keep coming
            while tries and select.select([listener], [], [], 0)[0]:
                tries -= 1
                await asyncio.sleep(BACKLOG_S)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() >= self._grace_ends and not self.should_exit:
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)


def _accept_no_more(listener: socket.socket) -> None:
    """Drops new connections: their clients try again a second later, and are refused then."""
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in NO_NEWCOMERS)
    buffer = ctypes.create_string_buffer(program)
    if sys.platform != "linux":  # without a filter, the few that connect meanwhile are reset
        return
    with suppress(OSError):  # not every sandbox has it
        filter = struct.pack("HL", len(NO_NEWCOMERS), ctypes.addressof(buffer))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter)


def _limit_connections() -> None:
    """Allows as many connections as the limit on open files, less those that the service itself needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max(soft, min(hard, MAX_FILES)) if hard != resource.RLIM_INFINITY else MAX_FILES
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    Connection.max_connections = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES)


def _give_memory_back() -> None:
    """Has glibc return freed memory of large images and bodies, of which it would otherwise keep hundreds of MB."""
    with suppress(OSError, AttributeError):  # another C library
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        allocator.mallopt(M_TRIM_THRESHOLD, 8 << 20)
