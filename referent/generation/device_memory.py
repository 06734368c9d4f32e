"""The place where a decoder computes, processor or GPU, and its memory for keys and values there."""

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime import OrtValue

Copy2D = Callable[[int, int, int, int, int, int], None]  # target, its pitch, source, its pitch, width, height; bytes


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
    providers: Sequence[Any] = ("CPUExecutionProvider",)

    def columns(self, heads: int, width: int, dtype: npt.DTypeLike) -> Columns:
        return HostColumns(heads, width, dtype)

    def keep(self, value: OrtValue) -> OrtValue:
        """A copy of a value whose memory belongs to others."""
        kept = OrtValue.ortvalue_from_shape_and_type(value.shape(), value.element_type(), *self.device)
        self._copy(kept.data_ptr(), value.data_ptr(), value.tensor_size_in_bytes())
        return kept

    def _copy(self, target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    def wait(self) -> None:
        """Until all copies are done."""


class Gpu(Host):
    """ONNX Runtime on a GPU, with the CUDA runtime that this process is linked with, as Triton's stub is.

    Raises RuntimeError if ONNX Runtime was built for CPUs only.
    """

    BY_ADDRESS = 4  # cudaMemcpyDefault

    def __init__(self, index: int) -> None:
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise RuntimeError("the model is for a GPU and ONNX Runtime for CPUs: install onnxruntime-gpu instead")
        ort.preload_dlls()  # CUDA and cuDNN from pip's nvidia-* wheels
        self.device = ("cuda", index)
        self.providers = [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
        self._cuda = ctypes.CDLL(None)
        address, size = ctypes.c_void_p, ctypes.c_size_t
        self._cuda.cudaMemcpy2D.argtypes = [address, size, address, size, size, size, ctypes.c_int]

    def columns(self, heads: int, width: int, dtype: npt.DTypeLike) -> Columns:
        return DeviceColumns(self.device, self._copy_2d, heads, width, dtype)

    def wait(self) -> None:
        self._check(self._cuda.cudaStreamSynchronize(None))

    def _copy(self, target: int, source: int, size: int) -> None:
        self._copy_2d(target, size, source, size, size, 1)
        self.wait()

    def _copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        self._check(
            self._cuda.cudaSetDevice(self.device[1])
            or self._cuda.cudaMemcpy2D(target, target_pitch, source, source_pitch, width, height, self.BY_ADDRESS)
        )

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"CUDA copy failed with status {status}")
