"""Wraps every request: turns its error into a problem, and writes its metrics and log line."""

import time
from collections.abc import Callable, Container

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import problem_response
from gateway.telemetry import CANCELLED, INFLIGHT, REQUEST_SECONDS, REQUESTS

log = structlog.get_logger("gateway")


class Envelope:
    """ASGI middleware: turns any exception into its problem, counts and logs. While `is_draining`, it tells clients to
    open a new connection for their next request, so that none uses a connection that the service is about to close.
    `paths` are the paths that metrics are counted by, also for requests that are refused before they are routed."""

    def __init__(self, app: ASGIApp, is_draining: Callable[[], bool], paths: Container[str]) -> None:
        self._app, self._is_draining, self._paths = app, is_draining, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 0, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start" and self._is_draining():
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        with INFLIGHT.track_inprogress():
            try:
                await self._app(scope, receive, noted)
            except Exception as error:
                if status:  # the answer has begun, so no problem can be sent: the server closes the connection
                    raise
                await (await problem_response(Request(scope), error))(scope, receive, noted)
            finally:
                status = status or 499  # cancelled: the client had left
                path = scope["path"] if scope["path"] in self._paths else "unmatched"
                seconds, route = time.perf_counter() - start, getattr(scope.get("route"), "path", path)
                REQUESTS.labels(route, status).inc()
                if status == 499:
                    CANCELLED.inc()
                REQUEST_SECONDS.labels(route).observe(seconds)
                ms = round(seconds * 1000, 1)
                line = {"route": route, "method": scope["method"], "status": status, "ms": ms, **scope.get("log", {})}
                if key := scope.get("state", {}).get("key"):
                    line["key"] = key
                (log.error if status >= 500 else log.info)("request", **line)
