"""From image bytes and expressions to boxes: decode, preprocess, inference, postprocess, under one deadline."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from PIL import Image

from gateway.registry import Model, Registry
from gateway.settings import Settings
from gateway.telemetry import EXPRESSIONS, STAGE_SECONDS
from gateway.triton import Prediction, Triton, VersionGoneError
from referent.api import GroundResponse, ImageSize, Timings
from referent.images import ImageTooLargeError, decode_image
from referent.processor import Inputs
from referent.prompts import ExpressionError

P = ParamSpec("P")
R = TypeVar("R")


class ExpressionCountError(ExpressionError):
    """No expression, or too many of them."""


class DeadlineError(TimeoutError):
    """The request's time ran out in `stage`."""

    def __init__(self, stage: str, deadline_s: float) -> None:
        super().__init__(f"the request was still in {stage} after {deadline_s:g} s")
        self.stage = stage


class Pipeline:
    """Answers requests. `close` when done."""

    def __init__(self, settings: Settings, registry: Registry, triton: Triton) -> None:
        self._settings, self._registry, self._triton = settings, registry, triton
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def ground(
        self, data: bytes, expressions: Sequence[str], model: str | None = None, request_id: str = ""
    ) -> GroundResponse:
        """JPEG, PNG or WebP bytes and expressions -> where their referents are.

        Raises `referent.images.ImageError`, `referent.prompts.ExpressionError`, `DeadlineError`, and as
        `Registry.get` and `Triton.infer` do.
        """
        self._check(data, expressions)
        EXPRESSIONS.observe(len(expressions))
        clock = _Clock(self._settings.deadline_s)
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                chosen = self._registry.get(model)
                with clock.stage("decode"):
                    image = await self._in_pool(decode_image, data, self._settings.max_pixels)
                try:
                    inputs, prediction = await self._infer(clock, chosen, image, expressions, request_id)
                except VersionGoneError:  # another was published: its tokenizer and transform are its own
                    await self._registry.refresh_model(chosen.bundle.name, stale=chosen)
                    chosen = self._registry.get(model)
                    inputs, prediction = await self._infer(clock, chosen, image, expressions, request_id)
                with clock.stage("postprocess"):
                    results = chosen.processor.postprocess(inputs, *prediction)
        except TimeoutError as error:
            raise DeadlineError(clock.current, self._settings.deadline_s) from error
        return GroundResponse(
            model=chosen.bundle.name,
            version=chosen.bundle.version,
            digest=chosen.digest,
            image=ImageSize(width=image.width, height=image.height),
            results=results,
            timings_ms=clock.timings(),
        )

    async def _infer(
        self, clock: "_Clock", model: Model, image: Image.Image, expressions: Sequence[str], request_id: str
    ) -> tuple[Inputs, Prediction]:
        with clock.stage("preprocess"):
            inputs = await self._in_pool(model.processor.preprocess, image, expressions)
        with clock.stage("inference"):
            return inputs, await self._triton.infer(model.bundle, inputs, clock.left_s(), request_id)

    def _check(self, data: bytes, expressions: Sequence[str]) -> None:
        limit = self._settings.max_image_bytes
        if len(data) > limit:
            raise ImageTooLargeError(f"image is {len(data)} bytes; the limit is {limit}: send a smaller one")
        if not 1 <= len(expressions) <= self._settings.max_expressions:
            raise ExpressionCountError(
                f"the request has {len(expressions)} expressions; send 1 to {self._settings.max_expressions}"
            )

    async def _in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))


class _Clock:
    """Times the stages of one request."""

    def __init__(self, deadline_s: float) -> None:
        self.current = "decode"
        self._start, self._deadline_s = time.perf_counter(), deadline_s
        self._seconds: defaultdict[str, float] = defaultdict(float)  # a stage can run twice

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.current, start = name, time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._seconds[name] += seconds
        STAGE_SECONDS.labels(name).observe(seconds)

    def left_s(self) -> float:
        return self._start + self._deadline_s - time.perf_counter()

    def timings(self) -> Timings:
        self._seconds["total"] = time.perf_counter() - self._start
        return Timings(**{name: round(seconds * 1000, 3) for name, seconds in self._seconds.items()})
