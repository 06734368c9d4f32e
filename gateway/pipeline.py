"""Answers image bytes and expressions: decode, preprocess, inference, postprocess, within one budget."""

import asyncio
import io
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

from gateway.body import Query
from gateway.budget import Budget, DeadlineError, Room
from gateway.image_reader import ImageReader
from gateway.registry import Model, Registry
from gateway.schemas import ImageInput
from gateway.settings import Settings
from gateway.shadow import Shadow
from gateway.telemetry import EXPRESSIONS, IMAGE_PIXELS, STAGE_SECONDS
from referent.client.drawing import draw
from referent.core.answers import Answer
from referent.core.api import GroundResponse, ImageSize
from referent.core.clock import StageClock
from referent.core.images import ImageTooLargeError, decode_image, image_header
from referent.core.kind import Prepared
from referent.core.prompts import ExpressionError
from referent.triton.aio import Triton
from referent.triton.protocol import TritonBusyError, TritonError, TritonUnavailableError, VersionGoneError

DECODING_BYTES = 300 * 10**6  # of memory for all images being decoded; a larger image is decoded alone
DRAWING_BYTES = 8  # of memory for each pixel: a copy to draw on, and the file
VERSION_TRIES = 3  # while several Tritons change versions one by one, a request may meet both versions

P = ParamSpec("P")
R = TypeVar("R")


class ExpressionCountError(ExpressionError):
    """No expression, or too many of them."""


class NoBoxError(ValueError):
    """The caller can only read boxes, and the model gave none."""


class Grounded(NamedTuple):
    """The answer to a query."""

    answer: GroundResponse
    png: bytes | None  # the image with its referents, if it was asked for


class Pipeline:
    """Answers requests. `close` when done."""

    def __init__(self, settings: Settings, registry: Registry, triton: Triton) -> None:
        self.settings, self._registry, self._triton = settings, registry, triton
        self._images = ImageReader(settings)
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._room = Room(DECODING_BYTES)
        self._shadow: Shadow | None = None
        if settings.shadow_model:
            self._shadow = Shadow(settings.shadow_model, settings.shadow_share, settings.max_pixels, registry, triton)

    def close(self) -> None:
        if self._shadow:
            self._shadow.close()
        self._pool.shutdown(cancel_futures=True)

    async def ground(
        self, query: Query, model: str | None, budget: Budget, request_id: str = "", with_picture: bool = False
    ) -> Grounded:
        """Where the referents of a query are; with `with_picture`, also drawn.

        Raises `referent.core.images.ImageError`, `referent.core.prompts.ExpressionError`, `DeadlineError`, and the
        errors of `ImageReader.read`, `Registry.get` and `Triton.infer`.
        """
        expressions = query.expressions
        self._check_count(expressions)
        EXPRESSIONS.observe(len(expressions))
        is_url = isinstance(query.image, ImageInput) and bool(query.image.url)
        clock = StageClock("fetch" if is_url else "queue", lambda stage, s: STAGE_SECONDS.labels(stage).observe(s))
        try:
            async with asyncio.timeout(budget.left_s()):
                chosen = self._registry.get(model)
                budget.weigh(chosen.processor.kind.requests(chosen.bundle, len(expressions), query.options))
                data = await self._read(query.image, budget)
                for tries_left in reversed(range(VERSION_TRIES)):
                    try:
                        clock.enter("queue")
                        until = time.monotonic() + budget.left_s()
                        prepared = await self.in_pool(self._prepare, chosen, data, query, until, clock.enter)
                        clock.enter("inference")
                        outputs = await self._triton.infer(chosen.bundle, prepared, budget.left_s(), request_id)
                        break
                    except VersionGoneError:  # a new version was published, with its own tokenizer and transform
                        if not tries_left:
                            raise
                        await self._registry.refresh_model(chosen.bundle.name, stale=chosen)
                        chosen = self._registry.get(model)
                clock.enter("postprocess")
                clock.parts(chosen.processor.kind.timings_ms(outputs))
                results = chosen.processor.answers(prepared, outputs)
                if all(result.finish_reason == "error" for result in results):
                    raise TritonUnavailableError("the passes of all expressions failed")
        except TimeoutError as error:
            raise DeadlineError(clock.stage, budget.seconds) from error
        except TritonBusyError:
            raise
        except TritonError:
            self._registry.suspect()
            raise
        width, height = prepared.frame.image_size
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
        return Grounded(answer, await self._draw(data, results, budget) if with_picture else None)

    async def _read(self, image: bytes | ImageInput, budget: Budget) -> bytes:
        """The bytes of the image file. Raises as `ImageReader.read` does, and `ImageTooLargeError`."""
        data, limit = await self._images.read(image, budget), self.settings.max_image_bytes
        if len(data) > limit:
            raise ImageTooLargeError(f"image is {len(data)} bytes; the limit is {limit}: send a smaller one")
        return data

    async def _draw(self, data: bytes, results: Sequence[Answer], budget: Budget) -> bytes:
        try:
            async with asyncio.timeout(budget.left_s()):
                png = await self.in_pool(self._drawn, data, results, time.monotonic() + budget.left_s())
        except TimeoutError as error:
            raise DeadlineError("draw", budget.seconds) from error
        budget.hold(len(png))  # until it is read
        return png

    async def in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs work for a processor in one of the decode threads, unless the caller is cancelled before it begins."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))

    def _prepare(self, model: Model, data: bytes, query: Query, until: float, enter: Callable[[str], None]) -> Prepared:
        """Decodes and preprocesses in one step, so that no decoded image waits in memory."""
        with self._room.taken(image_header(data).decoding_bytes, until):
            return model.processor.prepare(
                data,
                query.expressions,
                query.options,
                max_pixels=self.settings.max_pixels,
                until=until,
                enter=enter,
            )

    def _drawn(self, data: bytes, results: Sequence[Answer], until: float) -> bytes:
        buffer, header = io.BytesIO(), image_header(data)
        with self._room.taken(header.decoding_bytes + DRAWING_BYTES * math.prod(header.size), until):
            image = draw(decode_image(data, self.settings.max_pixels, until), results)
            image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _check_count(self, expressions: Sequence[str]) -> None:
        limit = self.settings.max_expressions
        if not 1 <= len(expressions) <= limit:
            raise ExpressionCountError(f"an image has {len(expressions)} expressions; send 1 to {limit}")
