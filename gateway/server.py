"""Runs the gateway with settings from the environment: python -m gateway"""

import math
import signal
import socket
import sys
import time
from asyncio import BaseTransport
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import h11
import structlog
import uvicorn
from fastapi import FastAPI
from prometheus_client import start_http_server
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.app import create_app
from gateway.settings import Settings
from gateway.telemetry import configure_logging

HEAD_TIMEOUT_S = 5  # from the connection, or the answer before, to the end of a request's head


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
    # asyncio sets it on sockets of its own alone; without, an answer in two writes waits 40 ms for the client's ACK
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
    Server(create_app(settings, on_ready), settings).run([listener])


class Connection(H11Protocol):
    """Closes the connection where a request's head takes too long: uvicorn stops its clock at the first byte."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            super()._unset_keepalive_if_required()


class Server(uvicorn.Server):
    """On SIGTERM, /readyz turns 503 and all requests are served for the grace period; then, and on SIGINT at once, no
    connection is accepted any more, requests in flight are answered, and it ends. Another signal ends the grace period.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                timeout_keep_alive=HEAD_TIMEOUT_S,
                proxy_headers=False,  # who sends X-Forwarded-For is not known here
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

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() >= self._grace_ends and not self.should_exit:
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)
