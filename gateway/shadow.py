"""Another model in the shadow of the one that serves: asked the same afterwards, to see how far their boxes agree."""

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog

from gateway.registry import Model, Registry
from gateway.telemetry import SHADOW_IOU, SHADOW_REQUESTS
from referent.core.boxes import iou
from referent.core.processor import Found, Inputs
from referent.triton.aio import Triton

TIMEOUT_S = 10

log = structlog.get_logger("gateway")


class Shadow:
    """Asks `model` about a share of the requests, one at a time and in a thread of its own, so that no answer waits for
    it; requests that come meanwhile are skipped, and counted. `close` when done."""

    def __init__(self, model: str, share: float, max_pixels: int, registry: Registry, triton: Triton) -> None:
        self._name, self._share, self._max_pixels = model, share, max_pixels
        self._registry, self._triton = registry, triton
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._comparison: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._comparison:
            self._comparison.cancel()
        self._pool.shutdown(cancel_futures=True)

    def compare(self, model: Model, data: bytes, served: Sequence[Found]) -> None:
        """Starts a comparison with what `model` answered about an image file, if its turn comes."""
        if model.bundle.name == self._name or random.random() >= self._share:
            return
        if self._comparison and not self._comparison.done():
            SHADOW_REQUESTS.labels("skipped").inc()
        else:
            self._comparison = asyncio.create_task(self._compare(data, served))

    async def _compare(self, data: bytes, served: Sequence[Found]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                model = self._registry.get(self._name)
                loop, expressions = asyncio.get_running_loop(), [found.expression for found in served]
                inputs = await loop.run_in_executor(self._pool, self._prepare, model, data, expressions)
                prediction = await self._triton.infer(model.bundle, inputs, TIMEOUT_S)
            for ours, theirs in zip(served, model.processor.postprocess(inputs, *prediction), strict=True):
                SHADOW_IOU.observe(agreement(ours, theirs))
            SHADOW_REQUESTS.labels("compared").inc()
        except Exception as error:  # whatever it is, the answer is out
            SHADOW_REQUESTS.labels("failed").inc()
            log.warning("shadow comparison failed", model=self._name, fault=f"{type(error).__name__}: {error}")

    def _prepare(self, model: Model, data: bytes, expressions: Sequence[str]) -> Inputs:
        return model.processor.preprocess(model.bundle.image.decode(data, self._max_pixels), expressions)


def agreement(ours: Found, theirs: Found) -> float:
    """IoU of the boxes where both see the object; else 1 if both see none, and 0."""
    if ours.present is False or theirs.present is False:
        return float(ours.present is theirs.present)
    return float(iou(np.array([ours.box_xyxy]), np.array([theirs.box_xyxy]))[0])
