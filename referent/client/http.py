"""Clients of a running service: `Client`, and `AsyncClient` for asyncio.

from referent.client.http import Client
Client().ground("photo.jpg", ["the queen", "the king on the left"]).results[0].box_xyxy
"""

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, NamedTuple, Self, TypeVar

import httpx
import stamina
from pydantic import ValidationError

from referent.client.progress import progress_bar
from referent.client.results import Grounding
from referent.core.api import TIMEOUT_HEADER, Metadata, ServedModel, ServedModels
from referent.core.sources import ImageSource, encoded, is_url

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "REFERENT_URL", "REFERENT_API_KEY"
PASSING = (429, 503)  # of answers that do not say themselves whether asking again helps
ENDS_A_RUN = (401, 403, 404)  # whatever the image: no key, the wrong one, no such model
LONGEST_BACKOFF_S = 2  # between attempts where the service did not say how long to wait
JITTER = 1.2  # the service tells many callers the same; they had better not come back together

T = TypeVar("T")
Item = tuple[ImageSource, str | Sequence[str]]


class ServiceUnreachableError(ConnectionError):
    """Nothing answers at the URL as the service does, or not in time."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class ServiceError(RuntimeError):
    """The service answered with a problem; the attributes are those of its problem+json."""

    def __init__(self, response: httpx.Response) -> None:
        is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
        problem: dict[str, Any] = response.json() if is_problem else {}
        self.status = response.status_code
        self.type: str = problem.get("type", "about:blank")
        self.title: str = problem.get("title", response.reason_phrase)
        self.detail: str = problem.get("detail", response.text[:200])
        self.request_id: str | None = problem.get("request_id")
        self.retryable: bool = problem.get("retryable", self.status in PASSING)
        self.stage: str | None = problem.get("stage")
        seconds = response.headers.get("retry-after", "")
        self.retry_after_s: float | None = float(seconds) if seconds.isdecimal() else None
        super().__init__(f"{self.title}: {self.detail} (status {self.status}, request {self.request_id})")


class Call(NamedTuple, Generic[T]):
    """A request, as arguments of httpx, and how its answer is read."""

    request: dict[str, Any]
    read: Callable[[bytes, float], T]  # of the answer's body and the milliseconds until it was there


def ground_call(image: ImageSource, expressions: str | Sequence[str], model: str | None) -> Call[Grounding]:
    """Raises OSError for a file that can't be read, and ValueError for an array that is no image."""
    asked = [expressions] if isinstance(expressions, str) else list(expressions)
    named = {"model": model} if model else {}
    request: dict[str, Any] = {"method": "POST", "url": "/v1/ground"}
    if is_url(image):
        request["json"] = {"image": {"url": image}, "expressions": asked, **named}
    else:
        request["files"] = {"image": ("image", encoded(image))}
        request["data"] = {"expression": asked, **named}

    return Call(request, lambda body, ms: Grounding.model_validate_json(body).of(image, ms))


MODELS = Call({"method": "GET", "url": "/v1/models"}, lambda body, _: ServedModels.model_validate_json(body).models)
METADATA = Call({"method": "GET", "url": "/v1/metadata"}, lambda body, _: Metadata.model_validate_json(body))


class _Service:
    """What both clients know: where the service is, how a request is sent and when it is sent again."""

    def __init__(
        self,
        url: str | None,
        timeout_s: float,
        api_key: str | None,
        max_connections: int,
    ) -> None:
        self.url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        self.timeout_s = timeout_s
        key = api_key or os.environ.get(KEY_VARIABLE)
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "limits": httpx.Limits(max_connections=max_connections),
        }
        self._policy: dict[str, Any] = {"attempts": None, "timeout": timeout_s, "wait_max": LONGEST_BACKOFF_S}
        self._has_answered = False

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout_s

    def _request(self, call: Call[T], deadline: float) -> dict[str, Any]:
        """Arguments of httpx: the service is told how long its answer is waited for."""
        left_s = max(0.001, deadline - time.monotonic())
        return {**call.request, "timeout": left_s, "headers": {TIMEOUT_HEADER: f"{left_s:.3f}"}}

    def _read(self, call: Call[T], response: httpx.Response, start: float) -> T:
        self._has_answered = True
        ms = 1000 * (time.perf_counter() - start)
        if response.is_error:
            raise ServiceError(response)
        try:
            return call.read(response.content, ms)
        except ValidationError as error:
            message = f"{self.url} answers, but not as Referent does: is it the gateway's URL?"
            raise ServiceUnreachableError(message) from error

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise ServiceUnreachableError(
                f"no answer from {self.url} within {self.timeout_s:g} s: ask again, or set a longer timeout"
            ) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            # A service that answered before comes back; one that never did is most likely not there.
            lost = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
            retryable = lost and (self._has_answered or not isinstance(error, httpx.ConnectError))
            raise ServiceUnreachableError(
                f"no answer from {self.url} ({error or type(error).__name__}); start a service with: referent serve",
                retryable,
            ) from error

    def _backoff(self, deadline: float) -> Callable[[Exception], bool | float]:
        """stamina's hook: not again, again after its own backoff, or after so many seconds."""

        def hook(error: Exception) -> bool | float:
            if not (isinstance(error, ServiceError | ServiceUnreachableError) and error.retryable):
                return False
            after_s = getattr(error, "retry_after_s", None)
            if after_s is None:
                return True
            after_s *= random.uniform(1, JITTER)
            return after_s if time.monotonic() + after_s < deadline else False

        return hook


class Client(_Service):
    """Asks the service at `url` (default: REFERENT_URL, or this machine) with a key (default: REFERENT_API_KEY).

    `timeout_s` limits each call with all its attempts: what the service calls retryable is asked again when it says so,
    and so is what a lost connection left unanswered. Any thread may use it. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout_s: float = 30,
        api_key: str | None = None,
        max_connections: int = 100,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, timeout_s, api_key, max_connections)
        with self._own_errors():
            self._http = httpx.Client(**self._options, transport=transport)
        self._retrying = stamina.RetryingCaller(**self._policy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ground(self, image: ImageSource, expressions: str | Sequence[str], model: str | None = None) -> Grounding:
        """Where in the image is what each expression refers to?

        The image is a path, an image file's bytes, a PIL image, an (H, W, 3) uint8 RGB array, or an http(s) URL, which
        the service fetches where it is set to. Raises OSError for a file that can't be read, ValueError for an array
        that is no image, `ServiceUnreachableError` and `ServiceError`.
        """
        return self._ask(ground_call(image, expressions, model))

    def ground_many(
        self, items: Iterable[Item], model: str | None = None, concurrency: int = 8, progress: bool = False
    ) -> Iterator[Grounding | Exception]:
        """For each (image, expressions), in order, the answer, or as a value the error that `ground` raised.

        What would meet every item is raised: `ServiceUnreachableError`, and `ServiceError` for a missing or wrong key
        and an unknown model. Items are taken `concurrency` ahead.
        """
        waiting: deque[Future[Grounding | Exception]] = deque()
        with _shown(progress, items, concurrency) as advance, ThreadPoolExecutor(concurrency) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(self._outcome, *item, model))
                    if len(waiting) == concurrency:
                        yield waiting.popleft().result()
                        advance()
                while waiting:
                    yield waiting.popleft().result()
                    advance()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def models(self) -> list[ServedModel]:
        """The versions being served, with their figures. Raises as `ground` does."""
        return self._ask(MODELS)

    def metadata(self) -> Metadata:
        """The service's version, models, formats and limits. Raises as `ground` does."""
        return self._ask(METADATA)

    def _outcome(
        self, image: ImageSource, expressions: str | Sequence[str], model: str | None
    ) -> Grounding | Exception:
        try:
            return self.ground(image, expressions, model)
        except (OSError, ValueError, ServiceError) as error:
            return _own_fault(error)

    def _ask(self, call: Call[T]) -> T:
        deadline = self._deadline()
        return self._retrying(self._backoff(deadline), self._send, call, deadline)

    def _send(self, call: Call[T], deadline: float) -> T:
        start = time.perf_counter()
        with self._own_errors():
            response = self._http.request(**self._request(call, deadline))
        return self._read(call, response, start)


class AsyncClient(_Service):
    """`Client` for asyncio."""

    def __init__(
        self,
        url: str | None = None,
        timeout_s: float = 30,
        api_key: str | None = None,
        max_connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, timeout_s, api_key, max_connections)
        with self._own_errors():
            self._http = httpx.AsyncClient(**self._options, transport=transport)
        self._retrying = stamina.AsyncRetryingCaller(**self._policy)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def ground(self, image: ImageSource, expressions: str | Sequence[str], model: str | None = None) -> Grounding:
        """As `Client.ground`."""
        return await self._ask(await asyncio.to_thread(ground_call, image, expressions, model))

    async def ground_many(
        self, items: Iterable[Item], model: str | None = None, concurrency: int = 8, progress: bool = False
    ) -> AsyncIterator[Grounding | Exception]:
        """As `Client.ground_many`."""
        waiting: deque[asyncio.Task[Grounding | Exception]] = deque()
        with _shown(progress, items, concurrency) as advance:
            try:
                for item in items:
                    waiting.append(asyncio.create_task(self._outcome(*item, model)))
                    if len(waiting) == concurrency:
                        yield await waiting.popleft()
                        advance()
                while waiting:
                    yield await waiting.popleft()
                    advance()
            finally:
                for task in waiting:
                    task.cancel()

    async def models(self) -> list[ServedModel]:
        """As `Client.models`."""
        return await self._ask(MODELS)

    async def metadata(self) -> Metadata:
        """As `Client.metadata`."""
        return await self._ask(METADATA)

    async def _outcome(
        self, image: ImageSource, expressions: str | Sequence[str], model: str | None
    ) -> Grounding | Exception:
        try:
            return await self.ground(image, expressions, model)
        except (OSError, ValueError, ServiceError) as error:
            return _own_fault(error)

    async def _ask(self, call: Call[T]) -> T:
        deadline = self._deadline()
        return await self._retrying(self._backoff(deadline), self._send, call, deadline)

    async def _send(self, call: Call[T], deadline: float) -> T:
        start = time.perf_counter()
        with self._own_errors():
            response = await self._http.request(**self._request(call, deadline))
        return self._read(call, response, start)


def _own_fault(error: Exception) -> Exception:
    """The error of one item among many; raises it where all the others would meet it too."""
    if isinstance(error, ServiceUnreachableError) or getattr(error, "status", None) in ENDS_A_RUN:
        raise error
    return error


def _shown(progress: bool, items: Iterable[Item], concurrency: int) -> Any:
    """A context whose value is to be called for each item done. Raises ValueError for no concurrency at all."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: ask at least one at a time")
    return progress_bar(len(items) if isinstance(items, Sized) else None) if progress else nullcontext(lambda: None)
