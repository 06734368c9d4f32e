"""The gateway's way to Triton over gRPC: what it serves, whether that is our bundle, and inference."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc.aio import InferenceServerClient

from gateway import tracing
from referent.core.boxes import Floats
from referent.core.bundle import Bundle
from referent.core.packing import PackedRow
from referent.core.processor import Inputs
from referent.triton.client import (
    LostConnectionError,
    Prediction,
    VersionGoneError,
    check_config,
    newest,
    own_errors,
    read_answer,
    row_request,
)

LOOKUP_TIMEOUT_S = 5  # for what Triton answers from memory
CHANNEL = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel shall mean new connections
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
# while several Tritons move on to another version, each has one of the two
TRIES = {LostConnectionError: 3, VersionGoneError: 5}
# a call hears of a lost connection just before the channel does, and would be given the same one again
PAUSE_S = 0.02


class Triton:
    """Client of one Triton, or of several in turn, where the URL is IP:PORT,IP:PORT or dns:///NAME:PORT; make it in the
    event loop that uses it."""

    def __init__(self, url: str) -> None:
        self._target = f"ipv4:{url}" if "," in url else url
        self._client = self._connect()
        self._before: InferenceServerClient | None = None

    async def close(self) -> None:
        for client in filter(None, (self._before, self._client)):
            await client.close()

    async def keep_reconnecting(self, interval_s: float) -> None:
        """Connects anew for ever, since a name is looked up only then: Tritons that were added get their share.

        What is in flight goes on over the connections before, for one more interval.
        """
        while True:
            await asyncio.sleep(interval_s)
            ending, self._before, self._client = self._before, self._client, self._connect()
            if ending:
                await ending.close()

    def _connect(self) -> InferenceServerClient:
        return InferenceServerClient(self._target, channel_args=CHANNEL)

    async def latest_version(self, name: str) -> str:
        """The highest version of a model that Triton has ready. Raises `TritonError`."""
        return newest(await self._ask(partial(self._client.get_model_metadata, name, client_timeout=LOOKUP_TIMEOUT_S)))

    async def check(self, bundle: Bundle, digest: str) -> None:
        """Raises `TritonError` unless Triton serves this very bundle with the tensors of the contract."""
        lookup = partial(self._client.get_model_config, client_timeout=LOOKUP_TIMEOUT_S)
        check_config(bundle, digest, (await self._ask(partial(lookup, bundle.name, bundle.version))).config)

    async def infer(self, bundle: Bundle, inputs: Inputs, timeout_s: float, request_id: str = "") -> Prediction:
        """Asks this version for each row of the inputs at once; cancelling the caller cancels the requests.

        Raises `TritonError`, and `TimeoutError` where Triton takes longer than `timeout_s`.
        """
        rows = [
            asyncio.ensure_future(self._infer_row(bundle, inputs.image, row, timeout_s, request_id))
            for row in inputs.rows
        ]
        try:
            return Prediction(*map(np.concatenate, zip(*await asyncio.gather(*rows), strict=True)))
        finally:  # where one failed, the others would be for nobody
            for row in rows:
                row.cancel()

    async def _infer_row(
        self, bundle: Bundle, image: npt.NDArray[np.uint8], row: PackedRow, timeout_s: float, request_id: str
    ) -> list[Floats]:
        request = row_request(bundle, image, row) | {"request_id": request_id, "headers": tracing.context()}
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_s
        result = await self._ask(lambda: self._client.infer(**request, client_timeout=deadline - now()))
        return read_answer(bundle, row, result)

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        """The answer, of the next Triton where the first can't give it: all questions are pure."""
        tries = dict(TRIES)
        while True:
            try:
                with own_errors():
                    return await question()
            except (LostConnectionError, VersionGoneError) as error:
                tries[type(error)] -= 1
                if not tries[type(error)]:
                    raise
                await asyncio.sleep(PAUSE_S)
