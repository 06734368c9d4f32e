"""Requests, answers and errors of Triton over gRPC, according to the contract."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerException, InferInput, InferRequestedOutput
from tritonclient.grpc.model_config_pb2 import DataType

from referent.core.bundle import Bundle
from referent.core.contract import DIGEST_PARAMETER, Tensor, dims_of
from referent.core.kind import DEFAULTS, Arrays, Options
from referent.kinds import kind_of

# UNAVAILABLE is gRPC's word for a lost connection and Triton's for a full queue: only the message tells them apart.
LOST_CONNECTION = (
    *("failed to connect", "socket closed", "connection reset", "broken pipe", "goaway", "stream removed"),
    *("cancelling all calls", "server is stopping"),  # a Triton that ends in good order
)
FULL_QUEUE = "Exceeds maximum queue size"
QUEUE_TIMEOUT = "Request timeout expired"
# what Triton calls INTERNAL although it goes away: a dead process that the launcher brings back, a full /dev/shm
FROZEN, NO_ROOM = "stub process", "shared memory"
PASSING = (FROZEN, NO_ROOM)


class TritonError(RuntimeError):
    """Triton refused the inference or failed, or its models or answers violate the contract."""


class TritonUnavailableError(TritonError):
    """Triton can't be reached, or can't take the request now."""


class LostConnectionError(TritonUnavailableError):
    """The connection to Triton broke, or there was none."""


class TritonBusyError(TritonError):
    """Triton's queue is full."""


class InternalError(TritonError):
    """The inference failed because of this Triton itself, such as a broken GPU."""


class PassingInternalError(TritonUnavailableError):
    """The same, but this Triton will recover: one of its processes died, or its shared memory is full."""


class VersionGoneError(TritonUnavailableError):
    """Triton doesn't serve this version of the model (any more)."""


def newest(metadata: Any) -> str:
    """The highest version in Triton's metadata of a model. Raises `VersionGoneError`."""
    if not metadata.versions:
        raise VersionGoneError(f"Triton has no version of {metadata.name} ready")
    return str(max(metadata.versions, key=int))


def check_config(bundle: Bundle, digest: str, config: Any) -> None:
    """Raises `TritonError` unless the config belongs to this bundle and has the tensors of its kind."""
    subject = f"{bundle.name} version {bundle.version}"
    if (served := config.parameters[DIGEST_PARAMETER].string_value) != digest:
        raise TritonError(f"Triton serves {subject} of digest {served or 'none'}, its bundle has {digest}")
    kind = kind_of(bundle)
    sizes = kind.sizes(bundle)
    for ours, theirs in ((kind.inputs, config.input), (kind.outputs(bundle), config.output)):
        expected = {t.name: (t.dtype, dims_of(t, sizes)) for t in ours}
        actual = {t.name: (DataType.Name(t.data_type).removeprefix("TYPE_"), list(t.dims)) for t in theirs}
        if actual != expected:
            raise TritonError(f"Triton serves {subject} with tensors {actual}, the contract has {expected}")


def inference_request(
    bundle: Bundle, arrays: Arrays, timeout_s: float | None = None, options: Options = DEFAULTS
) -> dict[str, Any]:
    """Arguments of tritonclient's `infer` for one inference of a prepared request, but for its own `client_timeout`;
    steps that can heed a time limit are told it. `options` are those of the request."""
    kind = kind_of(bundle)
    if timeout_s is not None:
        arrays = kind.with_timeout(arrays, timeout_s)
    return {
        "model_name": bundle.name,
        "model_version": bundle.version,
        "inputs": [_input(tensor, arrays) for tensor in kind.inputs if tensor.name in arrays],
        "outputs": [InferRequestedOutput(tensor.name) for tensor in kind.asked(bundle, options)],
    }


def read_outputs(bundle: Bundle, arrays: Arrays, result: Any, options: Options = DEFAULTS) -> Arrays:
    """The outputs of the inference that was asked with these arrays and options. Raises `TritonError` unless they are
    finite and of the contract's shapes."""
    kind = kind_of(bundle)
    sizes = kind.sizes(bundle)
    for tensor in kind.inputs:
        if tensor.name in arrays:
            sizes |= dict(zip(tensor.shape, arrays[tensor.name].shape[1:], strict=True))
    outputs = {}
    for tensor in kind.asked(bundle, options):
        output = outputs[tensor.name] = result.as_numpy(tensor.name)
        shape = dims_of(tensor, sizes)
        if (
            output is None
            or output.ndim != 1 + len(shape)
            or any(size not in (-1, actual) for size, actual in zip(shape, output.shape[1:], strict=True))
            or not np.isfinite(output).all()
        ):
            raise TritonError(f"Triton's {tensor.name} are not {shape} finite numbers")
    return outputs


def _input(tensor: Tensor, arrays: Arrays) -> InferInput:
    value = InferInput(tensor.name, arrays[tensor.name].shape, tensor.dtype)
    value.set_data_from_numpy(arrays[tensor.name])
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
        if status == "CANCELLED":  # a Triton that is killed; what we cancel ourselves raises nothing here
            raise LostConnectionError(message) from error
        if status == "INTERNAL" and any(mark in message.lower() for mark in PASSING):
            raise PassingInternalError(message) from error
        if status != "UNAVAILABLE":
            raise (InternalError if status == "INTERNAL" else TritonError)(f"{status}: {message}") from error
        lost = any(mark in message.lower() for mark in LOST_CONNECTION)
        raise (LostConnectionError if lost else TritonUnavailableError)(message) from error
