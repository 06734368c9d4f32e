"""Triton over gRPC: what it serves, whether that is our bundle, and inference; with errors of our own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerException, InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import DataType

from gateway import tracing
from referent import tensors
from referent.boxes import Floats
from referent.bundle import Bundle
from referent.packing import PackedRow
from referent.processor import Inputs

LOOKUP_TIMEOUT_S = 5  # for what Triton answers from memory
VERSION_TRIES = 4  # each asks the next Triton: while they are replaced one by one, some have another version
CHANNEL = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel shall mean new connections
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
# UNAVAILABLE is gRPC's word for a lost connection and Triton's for a full queue: only the message tells them apart.
LOST_CONNECTION = (
    *("failed to connect", "socket closed", "connection reset", "broken pipe", "goaway", "stream removed"),
    *("cancelling all calls", "server is stopping"),  # a Triton that ends in good order
)
FULL_QUEUE = "Exceeds maximum queue size"
QUEUE_TIMEOUT = "Request timeout expired"
# what Triton calls INTERNAL although it goes away: a dead process that the launcher brings back, a full /dev/shm
PASSING = ("stub process", "shared memory")


class TritonError(RuntimeError):
    """Triton refused or failed the inference, or what it serves or answers breaks the contract."""


class TritonUnavailableError(TritonError):
    """Triton can't be reached, or can't take the request now."""


class LostConnectionError(TritonUnavailableError):
    """The connection to Triton broke, or there was none."""


class TritonBusyError(TritonError):
    """Triton's queue is full."""


class VersionGoneError(TritonUnavailableError):
    """Triton doesn't serve this version of the model (any more)."""


class Prediction(NamedTuple):
    """What the model says of the M expressions of one image."""

    boxes: Floats  # (M, 4) cx,cy,w,h in 0..1 of the bundle's box frame
    scores: Floats | None = None  # (M,); None for models trained without


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
        return str(max(await _persist(lambda: self._versions(name)), key=int))

    async def check(self, bundle: Bundle, digest: str) -> None:
        """Raises `TritonError` unless Triton serves this very bundle with the tensors of the contract."""
        answer = await _persist(lambda: self._config(bundle))
        config, subject = answer.config, f"{bundle.name} version {bundle.version}"
        if (served := config.parameters[tensors.DIGEST_PARAMETER].string_value) != digest:
            raise TritonError(f"Triton serves {subject} of digest {served or 'none'}, its bundle has {digest}")
        for ours, theirs in ((tensors.ENSEMBLE_INPUTS, config.input), (_outputs(bundle), config.output)):
            expected = {t.name: (t.dtype, tensors.dims_of(t, {"S": bundle.image.size})) for t in ours}
            actual = {t.name: (DataType.Name(t.data_type).removeprefix("TYPE_"), list(t.dims)) for t in theirs}
            if actual != expected:
                raise TritonError(f"Triton serves {subject} with tensors {actual}, the contract has {expected}")

    async def infer(self, bundle: Bundle, inputs: Inputs, timeout_s: float, request_id: str = "") -> Prediction:
        """Asks this version for each row of the inputs at once; cancelling the caller cancels the requests.

        Raises `TritonError`, and `TimeoutError` where Triton takes longer than `timeout_s`.
        """
        rows = [self._infer_row(bundle, inputs.image, row, timeout_s, request_id) for row in inputs.rows]
        return Prediction(*map(np.concatenate, zip(*await asyncio.gather(*rows), strict=True)))

    async def _infer_row(
        self, bundle: Bundle, image: npt.NDArray[np.uint8], row: PackedRow, timeout_s: float, request_id: str
    ) -> list[Floats]:
        request = row_request(bundle, image, row) | {"request_id": request_id, "headers": tracing.context()}
        deadline = asyncio.get_running_loop().time() + timeout_s
        return read_answer(bundle, row, await _persist(lambda: self._send(request, deadline)))

    async def _versions(self, name: str) -> Sequence[str]:
        with own_errors():
            metadata = await self._client.get_model_metadata(name, client_timeout=LOOKUP_TIMEOUT_S)
        if not metadata.versions:
            raise VersionGoneError(f"Triton has no version of {name} ready")
        return list(metadata.versions)

    async def _config(self, bundle: Bundle) -> Any:
        with own_errors():
            return await self._client.get_model_config(bundle.name, bundle.version, client_timeout=LOOKUP_TIMEOUT_S)

    async def _send(self, request: dict[str, Any], deadline: float) -> Any:
        with own_errors():
            return await self._client.infer(**request, client_timeout=deadline - asyncio.get_running_loop().time())


async def _persist(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, at the second try after a lost connection and at one of VERSION_TRIES where the version is gone: what
    is asked is pure, and the next try goes to the next Triton if there are several."""
    tries = {LostConnectionError: 2, VersionGoneError: VERSION_TRIES}
    while True:
        try:
            return await ask()
        except (LostConnectionError, VersionGoneError) as error:
            tries[type(error)] -= 1
            if not tries[type(error)]:
                raise


def row_request(bundle: Bundle, image: npt.NDArray[np.uint8], row: PackedRow) -> dict[str, Any]:
    """Arguments of tritonclient's `infer` for one row."""
    arrays = {tensors.IMAGE: image}
    arrays |= {t: getattr(row, t.name) for t in (tensors.INPUT_IDS, tensors.SEGMENT_IDS, tensors.LOC_POSITIONS)}
    return {
        "model_name": bundle.name,
        "model_version": bundle.version,
        "inputs": [_input(tensor, array) for tensor, array in arrays.items()],
        "outputs": [InferRequestedOutput(tensor.name) for tensor in _outputs(bundle)],
    }


def read_answer(bundle: Bundle, row: PackedRow, result: Any) -> list[Floats]:
    """Boxes, and scores where there are any, of the row's expressions. Raises `TritonError`."""
    outputs = [result.as_numpy(tensor.name) for tensor in _outputs(bundle)]
    for tensor, output in zip(_outputs(bundle), outputs, strict=True):
        shape = tuple(tensors.dims_of(tensor, {"N": len(row.loc_positions)}))
        if output is None or output.shape[1:] != shape or not np.isfinite(output).all():
            raise TritonError(f"Triton's {tensor.name} are not {shape} finite numbers")
    return [output[0, : row.expressions] for output in outputs]


def _outputs(bundle: Bundle) -> tuple[tensors.Tensor, ...]:
    return tensors.ENSEMBLE_OUTPUTS if bundle.has_scores else (tensors.BOXES,)


def _input(tensor: tensors.Tensor, array: npt.NDArray[Any]) -> InferInput:
    value = InferInput(tensor.name, [1, *array.shape], tensor.dtype)
    value.set_data_from_numpy(array[None])
    return value


@contextmanager
def own_errors() -> Iterator[None]:
    """Turns tritonclient's error into `TritonError`, or TimeoutError."""
    try:
        yield
    except InferenceServerException as error:
        status, message = str(error.status()).removeprefix("StatusCode."), str(error.message())
        if status == "DEADLINE_EXCEEDED" or QUEUE_TIMEOUT in message:
            raise TimeoutError(message) from error
        if message.startswith("Request for unknown model"):  # NOT_FOUND if it never was, UNAVAILABLE if unloaded
            raise VersionGoneError(message) from error
        if FULL_QUEUE in message:
            raise TritonBusyError(message) from error
        if status != "UNAVAILABLE" and not any(mark in message.lower() for mark in PASSING):
            raise TritonError(f"{status}: {message}") from error
        lost = any(mark in message.lower() for mark in LOST_CONNECTION)
        raise (LostConnectionError if lost else TritonUnavailableError)(message) from error
