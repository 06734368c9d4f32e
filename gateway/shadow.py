"""A shadow model is asked the same after the serving model has answered, to measure how well their boxes agree."""

import asyncio
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import structlog

from gateway.registry import Model, Registry
from gateway.telemetry import SHADOW_IOU, SHADOW_REQUESTS
from referent.core.answers import Answer
from referent.core.boxes import iou
from referent.triton.aio import Triton

TIMEOUT_S = 10

log = structlog.get_logger("gateway")


class Shadow:
    """Asks `model` about a share of the requests, one at a time and in its own thread, so that no answer waits for it.
    Requests that come meanwhile are skipped and counted. Call `close` when done."""

    def __init__(self, model: str, share: float, max_pixels: int, registry: Registry, triton: Triton) -> None:
        self._name, self._share, self._max_pixels = model, share, max_pixels
        self._registry, self._triton = registry, triton
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._comparison: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._comparison:
            self._comparison.cancel()
        self._pool.shutdown(cancel_futures=True)

    def compare(self, model: Model, data: bytes, served: Sequence[Answer]) -> None:
        """Starts a comparison with what `model` answered about an image file, if its turn comes."""
        if model.bundle.name == self._name or random.random() >= self._share:
            return
        if self._comparison and not self._comparison.done():
            SHADOW_REQUESTS.labels("skipped").inc()
        else:
            self._comparison = asyncio.create_task(self._compare(data, served))

    async def _compare(self, data: bytes, served: Sequence[Answer]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                model = self._registry.get(self._name)
                until = time.monotonic() + TIMEOUT_S
                prepare = partial(model.processor.prepare, max_pixels=self._max_pixels, until=until)
                expressions = [answer.expression for answer in served]
                prepared = await asyncio.get_running_loop().run_in_executor(self._pool, prepare, data, expressions)
                outputs = await self._triton.infer(model.bundle, prepared, TIMEOUT_S)
            for ours, theirs in zip(served, model.processor.answers(prepared, outputs), strict=True):
                SHADOW_IOU.observe(agreement(ours, theirs))
            SHADOW_REQUESTS.labels("compared").inc()
        except Exception as error:  # any error: the answer has already been sent
            SHADOW_REQUESTS.labels("failed").inc()
            log.warning("shadow comparison failed", model=self._name, fault=f"{type(error).__name__}: {error}")


def agreement(ours: Answer, theirs: Answer) -> float:
    """IoU of the best boxes if both find something; otherwise 1 if neither does, else 0."""
    if not (ours.referents and theirs.referents):
        return float(bool(ours.referents) is bool(theirs.referents))
    if ours.box_xyxy is None or theirs.box_xyxy is None:
        return 0.0
    return float(iou(np.array([ours.box_xyxy]), np.array([theirs.box_xyxy]))[0])
