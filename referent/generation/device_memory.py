"""The place where graphs are computed, processor or GPU, and a decoder's memory for keys and values there."""

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime import OrtValue

Copy2D = Callable[[int, int, int, int, int, int], None]  # target, its pitch, source, its pitch, width, height; bytes
CUDA = "CUDAExecutionProvider"
# parameters of a config.pbtxt, as Triton's own backend has them, and what ONNX Runtime calls their numbers
CUDA_PARAMETERS: dict[str, Sequence[str]] = {
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "enable_cuda_graph": (),
    "gpu_mem_limit": (),
    "use_tf32": (),
}


class DeviceError(RuntimeError):
    """A graph can't be computed where it should be; the message has the remedy."""


class Columns(ABC):
    """Keys or values, (rows, heads, columns, width): the slots of a cache, or what one pass computes."""

    def __init__(self, heads: int, width: int, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._heads, self._width, self._size = heads, width, 0
        self.shape = (0, heads, 0, width)

    def resize(self, rows: int, columns: int) -> None:
        """Changes rows and columns, with more memory if needed; the content is lost."""
        size = rows * self._heads * columns * self._width
        if size > self._size:
            self._allocate(size)  # if it fails, shape and size stay those of the memory that is there
            self._size = size
        self.shape = (rows, self._heads, columns, self._width)

    @property
    def nbytes(self) -> int:
        return self._size * self.dtype.itemsize

    @abstractmethod
    def address(self, row: int = 0) -> int:
        """Address of a row's first number."""

    @abstractmethod
    def take(self, row: int, start: int, source: "Columns", source_row: int, count: int) -> None:
        """Copies the first `count` columns of a row of `source` to the columns of `row` from `start` on."""

    @abstractmethod
    def _allocate(self, size: int) -> None:
        """Memory for so many numbers, all 0."""


class HostColumns(Columns):
    """In this machine's memory."""

    def _allocate(self, size: int) -> None:
        self._memory = np.zeros(size, self.dtype)
        self._address: int = self._memory.ctypes.data

    def resize(self, rows: int, columns: int) -> None:
        super().resize(rows, columns)
        self._array = self._memory[: math.prod(self.shape)].reshape(self.shape)

    def address(self, row: int = 0) -> int:
        return self._address + row * self._array.strides[0]

    def take(self, row: int, start: int, source: Columns, source_row: int, count: int) -> None:
        assert isinstance(source, HostColumns)
        self._array[row, :, start : start + count] = source._array[source_row, :, :count]


class DeviceColumns(Columns):
    """In a device's memory, known by address."""

    def __init__(self, device: tuple[str, int], copy: Copy2D, heads: int, width: int, dtype: npt.DTypeLike) -> None:
        super().__init__(heads, width, dtype)
        self._device, self._copy = device, copy

    def _allocate(self, size: int) -> None:
        # zeros, since what nobody sees is still multiplied by 0, and memory may hold NaN
        self._memory = OrtValue.ortvalue_from_numpy(np.zeros(size, self.dtype), *self._device)
        self._address: int = self._memory.data_ptr()

    def address(self, row: int = 0) -> int:
        return self._address + row * self._heads * self._pitch

    @property
    def _pitch(self) -> int:
        """Bytes of a head."""
        return self.shape[2] * self._width * self.dtype.itemsize

    def take(self, row: int, start: int, source: Columns, source_row: int, count: int) -> None:
        assert isinstance(source, DeviceColumns)
        column = self._width * self.dtype.itemsize
        target = self.address(row) + start * column
        self._copy(target, self._pitch, source.address(source_row), source._pitch, count * column, self._heads)


class Host:
    """ONNX Runtime on the processor."""

    device: tuple[str, int] = ("cpu", 0)

    def session(self, file: Path, parameters: Mapping[str, str] | None = None) -> ort.InferenceSession:
        """`parameters` are those of a config.pbtxt."""
        return ort.InferenceSession(file, _options(parameters or {}), providers=["CPUExecutionProvider"])

    def columns(self, heads: int, width: int, dtype: npt.DTypeLike) -> Columns:
        return HostColumns(heads, width, dtype)

    def keep(self, value: OrtValue) -> OrtValue:
        """A copy of a value whose memory belongs to others."""
        kept = OrtValue.ortvalue_from_shape_and_type(value.shape(), value.element_type(), *self.device)
        self.copy(kept.data_ptr(), value.data_ptr(), value.tensor_size_in_bytes())
        return kept

    def copy(self, target: int, source: int, size: int) -> None:
        """Copies so many bytes between addresses of this machine or the place, and waits for it."""
        ctypes.memmove(target, source, size)

    def wait(self) -> None:
        """Until all copies are done."""


class Gpu(Host):
    """ONNX Runtime on a GPU, with the CUDA runtime that this process is linked with, as Triton's stub is.

    Raises `DeviceError` if ONNX Runtime was built for CPUs only, or can't load CUDA's libraries.
    """

    BY_ADDRESS = 4  # cudaMemcpyDefault

    def __init__(self, index: int) -> None:
        if CUDA not in ort.get_available_providers():
            raise DeviceError("the model is for a GPU and ONNX Runtime for CPUs: install onnxruntime-gpu instead")
        ort.preload_dlls()  # CUDA and cuDNN from pip's nvidia-* wheels
        self.device = ("cuda", index)

    @cached_property
    def _cuda(self) -> ctypes.CDLL:
        cuda = ctypes.CDLL(None)
        address, size = ctypes.c_void_p, ctypes.c_size_t
        cuda.cudaMemcpy.argtypes = [address, address, size, ctypes.c_int]
        cuda.cudaMemcpy2D.argtypes = [address, size, address, size, size, size, ctypes.c_int]
        return cuda

    def session(self, file: Path, parameters: Mapping[str, str] | None = None) -> ort.InferenceSession:
        """Raises `DeviceError` where ONNX Runtime would compute on the processor instead."""
        given = {name: value for name, value in (parameters or {}).items() if name in CUDA_PARAMETERS}
        named = {name: CUDA_PARAMETERS[name][int(v)] if CUDA_PARAMETERS[name] else v for name, v in given.items()}
        providers = [(CUDA, {"device_id": self.device[1], **named}), "CPUExecutionProvider"]
        session = ort.InferenceSession(file, _options(parameters or {}), providers=providers)
        if session.get_providers()[0] != CUDA:
            raise DeviceError("ONNX Runtime can't use CUDA here: the lines before this one name what is missing")
        return session

    def columns(self, heads: int, width: int, dtype: npt.DTypeLike) -> Columns:
        return DeviceColumns(self.device, self._copy_2d, heads, width, dtype)

    def wait(self) -> None:
        self._check(self._cuda.cudaStreamSynchronize(None))

    def copy(self, target: int, source: int, size: int) -> None:
        self._check(
            self._cuda.cudaSetDevice(self.device[1]) or self._cuda.cudaMemcpy(target, source, size, self.BY_ADDRESS)
        )
        self.wait()

    def _copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        self._check(
            self._cuda.cudaSetDevice(self.device[1])
            or self._cuda.cudaMemcpy2D(target, target_pitch, source, source_pitch, width, height, self.BY_ADDRESS)
        )

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA copy failed with status {status}")


def _options(parameters: Mapping[str, str]) -> ort.SessionOptions:
    """Reads the parameters that Triton's own backend reads, and any `session.*` entry of ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    if parameters.get("execution_mode") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    # spinning threads of several sessions on few cores cost up to 3.6x
    for key, value in {"session.intra_op.allow_spinning": "0", **parameters}.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    return options
