"""Decides which requests are admitted: before their bodies are read, and again as the bytes arrive."""

import asyncio
import math
import time
from ipaddress import ip_network

from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.body import BodyTooLargeError, InvalidRequestError
from gateway.budget import Budget, SlowBodyError
from gateway.settings import Settings
from gateway.telemetry import INFLIGHT_BYTES, INFLIGHT_BYTES_LIMIT, INFLIGHT_LIMIT
from referent.core.api import TIMEOUT_HEADER

SENDER_PREFIX_BITS = {4: 32, 6: 64}  # a customer usually has a whole /64 of IPv6


class OverloadedError(RuntimeError):
    """The service is already answering as many requests, or bytes of requests, as its limits allow."""


class RateLimitedError(RuntimeError):
    """The sender has used up its rate."""

    def __init__(self, rate: object, retry_after_s: int) -> None:
        super().__init__(f"more than {rate}: wait {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Admission:
    """ASGI middleware for requests with a body (POST). It limits the sender's rate, the bytes of the body, the bytes
    and number of all requests together, and the time. What is left of both is in `request.state.budget`."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._rates, self._limits = MovingWindowRateLimiter(MemoryStorage()), settings.rate_limits
        self._requests = self._bytes = 0
        INFLIGHT_LIMIT.set(settings.max_inflight_requests)
        INFLIGHT_BYTES_LIMIT.set(settings.max_inflight_bytes)
        INFLIGHT_BYTES.set_function(lambda: self._bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        self._check_rate(scope)
        held, received, expected, complete, places = 0, 0, 0, False, 0

        def hold(more: int) -> None:
            nonlocal held
            if self._bytes + more > self._settings.max_inflight_bytes:
                raise OverloadedError("the service has no memory left for another request: try again soon")
            self._bytes += more
            held += more

        def expect(size: int) -> None:
            nonlocal expected
            if size > (limit := self._settings.max_body_bytes):
                raise BodyTooLargeError(f"the body has more than {limit} bytes: send a smaller image")
            hold(size - expected)
            expected = size

        def take(more: int) -> None:
            nonlocal places
            if self._requests + more > self._settings.max_inflight_requests:
                raise OverloadedError(
                    f"{self._requests} requests are being answered and there is no room for this one: try again soon"
                )
            self._requests += more
            places += more

        def weigh(requests: int) -> None:  # a request that weighs more than the limit is admitted if it is the only one
            take(min(requests, self._settings.max_inflight_requests) - 1)

        budget = state["budget"] = Budget(_timeout_s(headers, self._settings.deadline_s), hold, weigh)

        async def metered() -> Message:
            nonlocal received, complete
            try:
                async with asyncio.timeout(None if complete else budget.left_s()):
                    message = await receive()
            except TimeoutError:
                raise SlowBodyError("body", budget.seconds) from None
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > expected:  # chunked: no length was announced
                expect(received)
            return message

        take(1)
        try:
            expect(int(headers.get("content-length", 0)))
            await self._app(scope, metered, send)
        finally:
            self._requests -= places
            self._bytes -= held

    def _check_rate(self, scope: Scope) -> None:
        for limit in self._limits:
            sender = _sender(scope)
            if not self._rates.hit(limit, sender):
                reset = self._rates.get_window_stats(limit, sender).reset_time
                raise RateLimitedError(limit, max(1, math.ceil(reset - time.time())))


def _sender(scope: Scope) -> str:
    """The key's name; without keys, the client's address."""
    if key := scope["state"].get("key"):
        return f"key {key}"
    address = ip_network((scope.get("client") or ("0.0.0.0", 0))[0])
    return str(address.supernet(new_prefix=SENDER_PREFIX_BITS[address.version]))


def _timeout_s(headers: Headers, cap_s: float) -> float:
    """The time limit that the caller asks for, at most the cap. Raises `InvalidRequestError`."""
    given = headers.get(TIMEOUT_HEADER)
    try:
        seconds = cap_s if given is None else float(given)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidRequestError(f"{TIMEOUT_HEADER} is {given!r}: give seconds, such as 2.5")
    return min(seconds, cap_s)
