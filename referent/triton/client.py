"""Triton over gRPC as the contract has it: requests, answers and errors; and a client that needs no gateway.

from referent.triton.client import TritonClient
TritonClient("127.0.0.1:8001", "mini").ground("photo.jpg", ["the queen"]).results[0].box_xyxy
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import stamina
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput, InferRequestedOutput
from tritonclient.grpc.model_config_pb2 import DataType

from referent.client.results import Grounding
from referent.core import contract as tensors
from referent.core.api import ImageSize, Timings
from referent.core.boxes import Floats
from referent.core.bundle import Bundle, load_bundle, load_encoder
from referent.core.packing import PackedRow
from referent.core.processor import Processor
from referent.core.prompts import ExpressionError
from referent.core.sources import ImageSource, encoded, is_url

DEFAULT_URL = "127.0.0.1:8001"
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


class TritonClient:
    """Grounds by one model of the Triton at `url`, with the processor of its bundle in `model_repository`, which is the
    folder that this Triton serves. Answers as the gateway does. `timeout_s` limits each call. Close it, or use it in a
    `with`.

    Raises, when it is made and when it is asked, `TritonError`, TimeoutError and `referent.core.bundle.BundleError`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str = "mini",
        model_repository: str | Path = "model_repository",
        timeout_s: float = 30,
    ) -> None:
        self._client, self._name, self._repository = InferenceServerClient(url), model, Path(model_repository)
        self._timeout_s = timeout_s
        self._retrying = stamina.RetryingCaller(attempts=None, timeout=timeout_s, wait_max=1)
        try:
            self._load()
        except BaseException as error:
            self.close()
            if isinstance(error, LostConnectionError):
                raise LostConnectionError(f"no Triton at {url} ({error}); start one with: referent serve") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def ground(self, image: ImageSource, expressions: str | Sequence[str]) -> Grounding:
        """As `referent.client.http.Client.ground`, of images that are no URLs.

        Raises `referent.core.images.ImageError` and `referent.core.prompts.ExpressionError` too.
        """
        if is_url(image):
            raise ValueError(f"Triton fetches no images and {image} is a URL: give the image itself")
        asked = [expressions] if isinstance(expressions, str) else list(expressions)
        if not asked:
            raise ExpressionError("there are no expressions: give one or more")
        data = encoded(image)
        deadline = time.monotonic() + self._timeout_s
        passing = (TritonUnavailableError, TritonBusyError)
        return self._retrying(passing, self._ground, data, asked, deadline).of(image)

    def _ground(self, data: bytes, expressions: list[str], deadline: float) -> Grounding:
        bundle, digest, processor = self._model
        marks = [time.perf_counter()]
        picture = bundle.image.decode(data)
        marks.append(time.perf_counter())
        inputs = processor.preprocess(picture, expressions)
        marks.append(time.perf_counter())
        try:
            rows = [self._infer(bundle, inputs.image, row, deadline) for row in inputs.rows]
        except VersionGoneError:  # another was published: the next attempt asks that one, with its own processor
            self._load()
            raise
        marks.append(time.perf_counter())
        results = processor.postprocess(inputs, *Prediction(*map(np.concatenate, zip(*rows, strict=True))))
        marks.append(time.perf_counter())
        stages = [round(1000 * ms, 3) for ms in np.diff(marks)]
        return Grounding(
            model=bundle.name,
            version=bundle.version,
            digest=digest,
            image=ImageSize(width=picture.size[0], height=picture.size[1]),
            results=results,
            timings_ms=Timings(
                queue=0,
                decode=stages[0],
                preprocess=stages[1],
                inference=stages[2],
                postprocess=stages[3],
                total=round(sum(stages), 3),
            ),
        )

    def _infer(self, bundle: Bundle, image: npt.NDArray[np.uint8], row: PackedRow, deadline: float) -> list[Floats]:
        left_s = max(0.001, deadline - time.monotonic())
        with own_errors():
            result = self._client.infer(**row_request(bundle, image, row), client_timeout=left_s)
        return read_answer(bundle, row, result)

    def _load(self) -> None:
        """The newest version that Triton has ready, held against the bundle in the repository."""
        with own_errors():
            version = newest(self._client.get_model_metadata(self._name, client_timeout=self._timeout_s))
            bundle, digest = load_bundle(self._repository, self._name, version)
            config = self._client.get_model_config(self._name, version, client_timeout=self._timeout_s).config
        check_config(bundle, digest, config)
        self._model = bundle, digest, Processor(bundle, load_encoder(self._repository, bundle))


def newest(metadata: Any) -> str:
    """The highest version in Triton's metadata of a model. Raises `VersionGoneError`."""
    if not metadata.versions:
        raise VersionGoneError(f"Triton has no version of {metadata.name} ready")
    return str(max(metadata.versions, key=int))


def check_config(bundle: Bundle, digest: str, config: Any) -> None:
    """Raises `TritonError` unless the config is of this very bundle, with the tensors of the contract."""
    subject = f"{bundle.name} version {bundle.version}"
    if (served := config.parameters[tensors.DIGEST_PARAMETER].string_value) != digest:
        raise TritonError(f"Triton serves {subject} of digest {served or 'none'}, its bundle has {digest}")
    for ours, theirs in ((tensors.ENSEMBLE_INPUTS, config.input), (_outputs(bundle), config.output)):
        expected = {t.name: (t.dtype, tensors.dims_of(t, {"S": bundle.image.size})) for t in ours}
        actual = {t.name: (DataType.Name(t.data_type).removeprefix("TYPE_"), list(t.dims)) for t in theirs}
        if actual != expected:
            raise TritonError(f"Triton serves {subject} with tensors {actual}, the contract has {expected}")


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
