"""Clients of a running service: `Client`, and `AsyncClient` for asyncio.

from referent.client.http import Client
Client().ground("photo.jpg", ["the queen", "the king on the left"]).results[0].box_xyxy
"""

import asyncio
import itertools
import logging
import math
import os
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Self, TypeVar

import httpx
from pydantic import ValidationError

from referent.client.address import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE, authorization, base_of, proxy_of
from referent.client.calls import METADATA, MODELS, Call, Question, ground_call
from referent.client.failures import SHOWN_CHARACTERS, ServiceError, ServiceUnreachableError
from referent.client.progress import progress_bar
from referent.client.results import Grounding
from referent.core.api import TIMEOUT_HEADER, Metadata, ServedModel
from referent.core.images import ImageTooLargeError
from referent.core.kind import Options
from referent.core.sources import ImageSource

ENDS_A_RUN = (401, 403, 404)  # the same for every image: no key, a wrong key, no such model
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 2  # between attempts, unless the service asks for a longer wait
JITTER = 1.2  # at most so many times the wait that the service names, so that callers don't all return at once
CHECKED_FROM_BYTES = 1_000_000  # a larger image is compared with the service's limit before it is sent
CHECK_S = 5  # time limit for checking whether the service answers at all

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class AsyncClient:
    """Asks the service at `url` (default: REFERENT_URL, or this machine) with a key (default: REFERENT_API_KEY).

    `timeout_s` limits each call with all its attempts: a problem that the service calls retryable is asked again when
    the service says so, and a request whose connection was lost is asked again too. Services on this machine are asked
    directly, others through the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, unless NO_PROXY names them. Each event
    loop has its own connections: call `close` in each, or use `async with`.

    Raises `ServiceUnreachableError` if `url` can't be the URL of a service, and ValueError for an invalid key or
    timeout.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout_s: float = 30,
        api_key: str | None = None,
        max_connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not (isinstance(timeout_s, int | float) and 0 < timeout_s < math.inf):
            raise ValueError(f"timeout_s is {timeout_s}: give seconds, more than 0")
        self._base = base_of((url or os.environ.get(URL_VARIABLE) or "").strip() or DEFAULT_URL)
        self.url = str(self._base.copy_with(username=None, password=None)).rstrip("/")  # for errors: no password
        self.timeout_s = timeout_s
        self._headers = authorization((api_key or os.environ.get(KEY_VARIABLE) or "").strip())
        self._limits = httpx.Limits(max_connections=max_connections)
        self._transport = transport
        self._proxy = None if transport else proxy_of(self._base)
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}
        self._has_answered = False
        self._most_image_bytes: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client:
            await client.aclose()

    async def ground(
        self,
        image: ImageSource,
        expressions: str | Sequence[str],
        model: str | None = None,
        max_instances: int | None = None,
        heatmap: bool = False,
    ) -> Grounding:
        """Where in the image is what each expression refers to?

        The image is a path, an image file's bytes, an open file, a PIL image, an (H, W, 3) uint8 RGB array, a data URL,
        or an http(s) URL, which the service fetches if its settings allow it. Raises OSError for a file that can't be
        read, ValueError for what is not an image or expression, `referent.core.images.ImageTooLargeError` for a file
        above the service's limit, `ServiceUnreachableError` and `ServiceError`.

        `max_instances` (1 to 64) limits the referents of an expression; by default the model's own limit applies.
        `heatmap` asks where the model looked. Models ignore options that don't apply to them.
        """
        options = Options(max_instances, heatmap)
        return await self._ground(await asyncio.to_thread(ground_call, image, expressions, model, options))

    async def ground_many(
        self,
        items: Iterable[Question],
        model: str | None = None,
        concurrency: int = 8,
        progress: bool = False,
        max_instances: int | None = None,
        heatmap: bool = False,
    ) -> AsyncIterator[Grounding | Exception]:
        """For each (image, expressions), in order, the answer, or the error that `ground` raised, as a value.

        An error that every item would get is raised: `ServiceUnreachableError` if the service no longer answers, and
        `ServiceError` for a missing or wrong key or an unknown model. Up to `concurrency` items are asked at a time.
        """
        waiting: deque[asyncio.Task[Grounding | Exception]] = deque()
        with _shown(progress, items, concurrency) as advance:
            try:
                for item in items:
                    waiting.append(asyncio.create_task(self.outcome(item, model, max_instances, heatmap)))
                    if len(waiting) == concurrency:
                        yield await waiting.popleft()
                        advance()
                while waiting:
                    yield await waiting.popleft()
                    advance()
            finally:
                for task in waiting:
                    task.cancel()

    async def outcome(
        self, item: Question, model: str | None = None, max_instances: int | None = None, heatmap: bool = False
    ) -> Grounding | Exception:
        """What `ground_many` yields for the item. Raises errors that every item would get."""
        try:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise ValueError(f"{item!r:.80} is not an item: give (image, expressions)")
            return await self.ground(*item, model, max_instances, heatmap)
        except ServiceUnreachableError as error:
            if not await self._answers():
                raise
            return error  # of this item only: the service answers other requests
        except ServiceError as error:
            if error.status in ENDS_A_RUN:
                raise
            return error
        except (OSError, ValueError) as error:
            return error

    async def models(self) -> list[ServedModel]:
        """The versions being served, with their figures. Raises `ServiceUnreachableError` and `ServiceError`."""
        return await self._ask(MODELS, self._deadline())

    async def metadata(self) -> Metadata:
        """The service's version, models, formats and limits. Raises `ServiceUnreachableError` and `ServiceError`."""
        return await self._ask(METADATA, self._deadline())

    async def _ground(self, call: Call[Grounding]) -> Grounding:
        deadline = self._deadline()
        if call.image_bytes > CHECKED_FROM_BYTES:
            await self._check_size(call.image_bytes, deadline)
        return await self._ask(call, deadline)

    async def _check_size(self, image_bytes: int, deadline: float) -> None:
        """Raises `ImageTooLargeError` above the service's limit. The service would refuse the image too, but it may
        close the connection while the image is still being sent, and then its reason is lost."""
        if self._most_image_bytes is None:
            try:
                self._most_image_bytes = (await self._ask(METADATA, deadline)).limits.image_bytes
            except (ServiceError, ServiceUnreachableError):  # the request itself will show the problem
                return
        if image_bytes > self._most_image_bytes:
            raise ImageTooLargeError(
                f"the image is too large: {image_bytes / 1e6:.1f} MB; the limit of {self.url} is "
                f"{self._most_image_bytes / 1e6:.1f} MB: send a smaller one"
            )

    async def _answers(self) -> bool:
        """Whether the service answers anything at all."""
        try:
            await self._ask(METADATA, min(self._deadline(), time.monotonic() + CHECK_S))
        except ServiceUnreachableError:
            return False
        except ServiceError as error:
            return error.status < 500
        return True

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout_s

    async def _ask(self, call: Call[T], deadline: float) -> T:
        for backoff_s in _backoffs():
            try:
                return await self._send(call, deadline)
            except (ServiceError, ServiceUnreachableError) as error:
                wait_s = max(backoff_s, (error.retry_after_s or 0) * random.uniform(1, JITTER))
                if not error.retryable or time.monotonic() + wait_s >= deadline:
                    raise
                LOG.info("asking again in %.1f s: %s", wait_s, error)
            await asyncio.sleep(wait_s)
        raise AssertionError("there is always another backoff")

    async def _send(self, call: Call[T], deadline: float) -> T:
        start = time.perf_counter()
        left_s = max(0.001, deadline - time.monotonic())
        told = {TIMEOUT_HEADER: f"{left_s:.3f}"}  # tells the service how long the client will wait
        try:
            async with asyncio.timeout(left_s):  # httpx's own limits start again with each piece
                response = await self._http().request(**call.request, headers=told)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ServiceUnreachableError(
                f"no answer from {self.url} within {self.timeout_s:g} s: ask again, or set a longer timeout"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: invalid host name
            raise self._unreachable(error) from error
        self._has_answered = True
        return self._read(call, response, 1000 * (time.perf_counter() - start))

    def _read(self, call: Call[T], response: httpx.Response, ms: float) -> T:
        if response.is_error:
            raise ServiceError(response, self._proxy and self._proxy.variable)
        if response.has_redirect_location:
            to = response.headers["location"][:SHOWN_CHARACTERS]
            raise ServiceUnreachableError(f"{self.url} redirects to {to}: give the URL of the service itself")
        try:
            return call.read(response.content, ms)
        except ValidationError as error:
            message = f"{self.url} answers, but not as Referent does: is it the gateway's URL?"
            raise ServiceUnreachableError(message) from error

    def _unreachable(self, error: Exception) -> ServiceUnreachableError:
        # a service that answered before will probably come back; one that never did is probably not there
        lost = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
        retryable = lost and (self._has_answered or not isinstance(error, httpx.ConnectError))
        reason = str(error) or type(error).__name__
        if self._proxy:
            by, remedy = f" through the proxy of {self._proxy.variable}", self._proxy.remedy
        else:
            by, remedy = "", "start a service with: referent serve"
        return ServiceUnreachableError(f"no answer from {self.url}{by} ({reason}); {remedy}", retryable)

    def _http(self) -> httpx.AsyncClient:
        """The client of this event loop: connections belong to the loop that opened them."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            for ended in [other for other in self._clients if other.is_closed()]:
                del self._clients[ended]
            self._clients[loop] = httpx.AsyncClient(
                base_url=self._base, headers=self._headers, transport=self._transport or self._new_transport(),
                timeout=None,
            )  # fmt: skip
        return self._clients[loop]

    def _new_transport(self) -> httpx.AsyncBaseTransport:
        try:
            return httpx.AsyncHTTPTransport(limits=self._limits, proxy=self._proxy and self._proxy.url)
        except (OSError, ssl.SSLError) as error:
            raise ServiceUnreachableError(f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR: {error}") from error
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            if not self._proxy:
                raise
            raise ServiceUnreachableError(
                f"the proxy of {self._proxy.variable} can't be used ({error}); {self._proxy.remedy}"
            ) from error


class Client:
    """`AsyncClient` without asyncio. It may be used from any thread, and in a process that was forked later."""

    def __init__(
        self,
        url: str | None = None,
        timeout_s: float = 30,
        api_key: str | None = None,
        max_connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(url, timeout_s, api_key, max_connections, transport)
        self.url, self.timeout_s = self._client.url, self._client.timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        _result(_start(self._client.close()))

    def ground(
        self,
        image: ImageSource,
        expressions: str | Sequence[str],
        model: str | None = None,
        max_instances: int | None = None,
        heatmap: bool = False,
    ) -> Grounding:
        """As `AsyncClient.ground`."""
        call = ground_call(image, expressions, model, Options(max_instances, heatmap))
        return _result(_start(self._client._ground(call)))

    def ground_many(
        self,
        items: Iterable[Question],
        model: str | None = None,
        concurrency: int = 8,
        progress: bool = False,
        max_instances: int | None = None,
        heatmap: bool = False,
    ) -> Iterator[Grounding | Exception]:
        """As `AsyncClient.ground_many`."""
        waiting: deque[Future[Grounding | Exception]] = deque()
        with _shown(progress, items, concurrency) as advance:
            try:
                for item in items:
                    waiting.append(_start(self._client.outcome(item, model, max_instances, heatmap)))
                    if len(waiting) == concurrency:
                        yield _result(waiting.popleft())
                        advance()
                while waiting:
                    yield _result(waiting.popleft())
                    advance()
            finally:
                for future in waiting:
                    future.cancel()

    def models(self) -> list[ServedModel]:
        """As `AsyncClient.models`."""
        return _result(_start(self._client.models()))

    def metadata(self) -> Metadata:
        """As `AsyncClient.metadata`."""
        return _result(_start(self._client.metadata()))


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of all `Client`s of this process, in its own thread. In an event loop a time limit stops whatever
    takes too long, which it can't with blocking sockets."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="referent.client", daemon=True).start()
    return loop


def _start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(coroutine, _loop(os.getpid()))


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BaseException:  # Ctrl-C ends the request too
        future.cancel()
        raise


def _shown(progress: bool, items: Iterable[Question], concurrency: int) -> AbstractContextManager[Callable[[], None]]:
    """A context whose value is to be called for each item done. Raises ValueError if `concurrency` is less than 1."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: ask at least one at a time")
    return progress_bar(len(items) if isinstance(items, Sized) else None) if progress else nullcontext(lambda: None)


def _backoffs() -> Iterator[float]:
    """Seconds to wait after each attempt: doubled each time up to a limit, times a random factor of 0.5 to 1."""
    for attempt in itertools.count():
        yield min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(attempt, 10)) * random.uniform(0.5, 1)
