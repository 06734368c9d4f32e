"""From image bytes and expressions to boxes: decode, preprocess, inference, postprocess, under one budget."""

import asyncio
import io
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from gateway.budget import Budget, DeadlineError
from gateway.registry import Model, Registry
from gateway.schemas import ImageInput
from gateway.settings import Settings
from gateway.shadow import Shadow
from gateway.sources import Sources
from gateway.telemetry import EXPRESSIONS, IMAGE_PIXELS, STAGE_SECONDS
from referent.client.drawing import draw
from referent.core.api import GroundResponse, ImageSize, Timings
from referent.core.images import ImageTooLargeError, decode_image
from referent.core.processor import Found, Inputs
from referent.core.prompts import ExpressionError
from referent.triton.aio import Triton
from referent.triton.client import Prediction, TritonBusyError, TritonError, VersionGoneError

VERSION_TRIES = 3  # several Tritons that move on one by one may show the same request both versions

P = ParamSpec("P")
R = TypeVar("R")


class ExpressionCountError(ExpressionError):
    """No expression, or too many of them."""


class Pipeline:
    """Answers requests. `close` when done."""

    def __init__(self, settings: Settings, registry: Registry, triton: Triton) -> None:
        self.settings, self._registry, self._triton = settings, registry, triton
        self._sources = Sources(settings)
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._shadow: Shadow | None = None
        if settings.shadow_model:
            self._shadow = Shadow(settings.shadow_model, settings.shadow_share, settings.max_pixels, registry, triton)

    def close(self) -> None:
        if self._shadow:
            self._shadow.close()
        self._pool.shutdown(cancel_futures=True)

    async def ground(
        self,
        image: bytes | ImageInput,
        expressions: Sequence[str],
        model: str | None,
        budget: Budget,
        request_id: str = "",
    ) -> tuple[GroundResponse, bytes]:
        """An image (JPEG, PNG or WebP) and expressions -> where their referents are, and the image's file.

        Raises `referent.core.images.ImageError`, `referent.core.prompts.ExpressionError`, `DeadlineError`, and as
        `Sources.read`, `Registry.get` and `Triton.infer` do.
        """
        self._check_count(expressions)
        EXPRESSIONS.observe(len(expressions))
        clock = _Clock("fetch" if isinstance(image, ImageInput) and image.url else "queue")
        try:
            async with asyncio.timeout(budget.left_s()):
                chosen = self._registry.get(model)
                data = await self._read(image, budget)
                for tries_left in reversed(range(VERSION_TRIES)):
                    try:
                        inputs, prediction = await self._infer(clock, chosen, data, expressions, budget, request_id)
                        break
                    except VersionGoneError:  # another was published: its tokenizer and transform are its own
                        if not tries_left:
                            raise
                        await self._registry.refresh_model(chosen.bundle.name, stale=chosen)
                        chosen = self._registry.get(model)
                clock.enter("postprocess")
                results = chosen.processor.postprocess(inputs, *prediction)
        except TimeoutError as error:
            raise DeadlineError(clock.stage, budget.seconds) from error
        except TritonBusyError:
            raise
        except TritonError:
            self._registry.suspect()
            raise
        width, height = inputs.placement.image_size
        IMAGE_PIXELS.observe(width * height)
        if self._shadow:
            self._shadow.compare(chosen, data, results)
        answer = GroundResponse(
            model=chosen.bundle.name,
            version=chosen.bundle.version,
            digest=chosen.digest,
            image=ImageSize(width=width, height=height),
            results=results,
            timings_ms=clock.timings(),
        )
        return answer, data

    async def _read(self, image: bytes | ImageInput, budget: Budget) -> bytes:
        """The bytes of the image file. Raises as `Sources.read` does, and `ImageTooLargeError`."""
        data, limit = await self._sources.read(image, budget), self.settings.max_image_bytes
        if len(data) > limit:
            raise ImageTooLargeError(f"image is {len(data)} bytes; the limit is {limit}: send a smaller one")
        return data

    async def draw(self, data: bytes, results: Sequence[Found], budget: Budget) -> bytes:
        """PNG of the image in which the results were found, with their boxes. Raises `DeadlineError`."""
        try:
            async with asyncio.timeout(budget.left_s()):
                return await self.in_pool(self._drawn, data, results)
        except TimeoutError as error:
            raise DeadlineError("draw", budget.seconds) from error

    async def in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs what takes a processor: in one of the decode threads, or never where the caller is cancelled before."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    async def _infer(
        self,
        clock: "_Clock",
        model: Model,
        data: bytes,
        expressions: Sequence[str],
        budget: Budget,
        request_id: str,
    ) -> tuple[Inputs, Prediction]:
        clock.enter("queue")
        inputs = await self.in_pool(self._prepare, clock, model, data, expressions)
        clock.enter("inference")
        return inputs, await self._triton.infer(model.bundle, inputs, budget.left_s(), request_id)

    def _prepare(self, clock: "_Clock", model: Model, data: bytes, expressions: Sequence[str]) -> Inputs:
        """In one go, so that no decoded image waits: there are as many of them as threads, whatever the load."""
        clock.enter("decode")
        picture = model.bundle.image.decode(data, self.settings.max_pixels)
        clock.enter("preprocess")
        return model.processor.preprocess(picture, expressions)

    def _drawn(self, data: bytes, results: Sequence[Found]) -> bytes:
        buffer = io.BytesIO()
        draw(decode_image(data, self.settings.max_pixels), results).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _check_count(self, expressions: Sequence[str]) -> None:
        limit = self.settings.max_expressions
        if not 1 <= len(expressions) <= limit:
            raise ExpressionCountError(f"an image has {len(expressions)} expressions; send 1 to {limit}")


class _Clock:
    """Times the stages of one image, one after another; `stage` is the current one."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._start = self._entered = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)  # a stage can run twice

    def enter(self, stage: str) -> None:
        """Ends the stage before, from whichever thread."""
        if stage == self.stage:
            return
        now = time.perf_counter()
        seconds, self._entered = now - self._entered, now
        self._seconds[self.stage] += seconds
        STAGE_SECONDS.labels(self.stage).observe(seconds)
        self.stage = stage

    def timings(self) -> Timings:
        """Ends the last stage."""
        self.enter("")
        total = self._entered - self._start
        return Timings(
            **{name: round(seconds * 1000, 3) for name, seconds in {**self._seconds, "total": total}.items()}
        )
