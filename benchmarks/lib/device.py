"""Runs parts of a model on the GPU if there is one, otherwise on the CPU: in PyTorch, and as graphs."""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from export.config import CUDA
from export.graphs import Part, Tensors, run
from referent.generation.device_memory import Gpu, Host

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
NUMPY = {torch.uint8: np.uint8, torch.int64: np.int64, torch.float16: np.float16, torch.float32: np.float32,
         torch.bool: np.bool_}  # fmt: skip


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Where the model is; floats in fp16."""
    return (tensor.half() if tensor.is_floating_point() else tensor).to(DEVICE).contiguous()


def waiting(call: Callable[[], object]) -> Callable[[], None]:
    """The call until the device has done it."""

    def called() -> None:
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    return called


def free() -> None:
    """Gives memory of the device back: weights of two frameworks may not fit."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


@torch.inference_mode()
def pytorch(part: Part, inputs: Tensors) -> Tensors:
    """A part's outputs, in the dtype of its module."""
    dtype = next(p.dtype for p in part.module.parameters() if p.ndim > 1)
    return run([part], {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()})


def session_of(file: Path, **parameters: str) -> onnxruntime.InferenceSession:
    """With the parameters of a published part, and others. Raises `referent.generation.device_memory.DeviceError`."""
    return (Gpu(0) if ON_GPU else Host()).session(file, CUDA | parameters)


def bound(session: onnxruntime.InferenceSession, tensors: Tensors) -> Any:
    """Inputs where they are, outputs on the device."""
    binding = session.io_binding()
    for node in session.get_inputs():
        _bind(binding.bind_input, node.name, tensors[node.name])
    for node in session.get_outputs():
        binding.bind_output(node.name, DEVICE)
    return binding


class Chain:
    """The exported steps one after another with I/O binding: every tensor stays on the device, in memory of its own."""

    def __init__(self, files: list[Path], inputs: Tensors, sizes: Mapping[str, int], **parameters: str) -> None:
        self.tensors, self._calls = dict(inputs), []
        for file in files:
            session = session_of(file, **parameters)
            binding = session.io_binding()
            for node in session.get_inputs():
                _bind(binding.bind_input, node.name, self.tensors[node.name])
            for node in session.get_outputs():
                shape = [sizes[dim] if isinstance(dim, str) else dim for dim in node.shape]
                dtype = torch.float16 if "float16" in node.type else torch.float32
                self.tensors[node.name] = torch.empty(shape, dtype=dtype, device=DEVICE)
                _bind(binding.bind_output, node.name, self.tensors[node.name])
            self._calls.append((session, binding))

    def __call__(self) -> None:
        for session, binding in self._calls:
            session.run_with_iobinding(binding)


def _bind(bind: Callable[..., None], name: str, tensor: torch.Tensor) -> None:
    bind(name, DEVICE, 0, NUMPY[tensor.dtype], list(tensor.shape), tensor.data_ptr())
