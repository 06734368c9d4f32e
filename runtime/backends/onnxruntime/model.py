"""Triton backend `onnxruntime` in Python: serves <model>/<version>/model.onnx where Triton's own one is missing.

Tensors are OrtValues from end to end: DLPack in and out, and one plain copy to join or split the requests of a batch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from onnxruntime import OrtValue

from referent.generation.device_memory import Gpu, Host

# Anything else that an operator refuses in a request of its own, it refuses for the values or shapes of that request.
SERVER_FAULT = re.compile(r"alloc|out of memory|CU\w+ failure")


TYPES = {
    "TYPE_UINT8": "uint8",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float",
    "TYPE_BOOL": "bool",
}


class TritonPythonModel:
    """One instance of one version of a model whose config.pbtxt names every input and output."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.batching = config["max_batch_size"] > 0
        self.name, self.reports_memory = args["model_name"], os.environ.get("REFERENT_REPORT_MEMORY") == "1"
        on_gpu = args["model_instance_kind"] == "GPU"
        self.place = Gpu(int(args["model_instance_device_id"])) if on_gpu else Host()
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.session = self.place.session(path, parameters)
        _compare(config["input"], self.session.get_inputs(), self.batching)
        _compare(config["output"], self.session.get_outputs(), self.batching)
        for warmup in config.get("model_warmup", [])[: None if on_gpu else 1]:
            # a model that fails while Triton warms it up crashes Triton; on a GPU that may be for want of memory
            rows = warmup.get("batch_size", 1)
            self.session.run(self.outputs, {name: _zeros(tensor, rows) for name, tensor in warmup["inputs"].items()})
        self.binding = self.session.io_binding()  # one for all runs: making it took 0.1 ms each

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answers a batch; a request that cannot be answered gets an error of its own."""
        groups = [requests] if self.batching else [[request] for request in requests]
        return [answer for group in groups for answer in self._answer(group)]

    def _answer(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        try:
            return self._run(requests)
        except Exception as error:
            if len(requests) > 1:
                pb_utils.Logger.log_warn(f"a batch of {len(requests)} failed; running each request alone: {error}")
                return [answer for request in requests for answer in self._answer([request])]
            operator = re.search(r"while running (\w+) node", str(error))
            if operator and not SERVER_FAULT.search(str(error)):
                return [_error("INVALID_ARG", f"operator {operator[1]} refuses the values or shapes of this request")]
            pb_utils.Logger.log_error(str(error))
            return [_error("INTERNAL", "inference failed; the server's log has the cause")]

    def _run(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        try:
            for name in self.inputs:
                tensors = [pb_utils.get_input_tensor_by_name(request, name) for request in requests]
                parts = [OrtValue.from_dlpack(tensor.to_dlpack()) for tensor in tensors]
                rows = [part.shape()[0] for part in parts]
                self._report("input", name, parts[0])
                self.binding.bind_ortvalue_input(name, self._join(parts) if len(parts) > 1 else parts[0])
            for name in self.outputs:
                self.binding.bind_output(name, *self.place.device)
            self.session.run_with_iobinding(self.binding)
            wholes = self.binding.get_outputs()
            for name, whole in zip(self.outputs, wholes, strict=True):
                self._report("output", name, whole)
        finally:  # lets go of the requests' memory, and of outputs that the next run would overwrite
            self.binding.clear_binding_inputs()
            self.binding.clear_binding_outputs()
        columns = [self._split(whole, rows) if len(rows) > 1 else [whole] for whole in wholes]
        return [self._response(values) for values in zip(*columns, strict=True)]

    def _report(self, side: str, name: str, value: OrtValue) -> None:
        """Logs where a tensor is, to check that none passes through the host's memory."""
        if self.reports_memory:
            where = f"{value.device_name()} {value.data_ptr():#x}"
            pb_utils.Logger.log_info(f"memory of {side} {name} of {self.name}: {where}")

    def _response(self, values: Sequence[OrtValue]) -> pb_utils.InferenceResponse:
        return pb_utils.InferenceResponse([_tensor(*named) for named in zip(self.outputs, values, strict=True)])

    def _join(self, parts: Sequence[OrtValue]) -> OrtValue:
        whole = self._empty_like(parts[0], sum(part.shape()[0] for part in parts))
        for part, address, size in _places(whole, parts):
            self.place.copy(address, part.data_ptr(), size)
        return whole

    def _split(self, whole: OrtValue, rows: Sequence[int]) -> list[OrtValue]:
        parts = [self._empty_like(whole, count) for count in rows]
        for part, address, size in _places(whole, parts):
            self.place.copy(part.data_ptr(), address, size)
        return parts

    def _empty_like(self, value: OrtValue, rows: int) -> OrtValue:
        shape = [rows, *value.shape()[1:]]
        return OrtValue.ortvalue_from_shape_and_type(shape, value.element_type(), *self.place.device)


def _compare(declared: Sequence[dict[str, Any]], given: Sequence[Any], batching: bool) -> None:
    """Raises ValueError unless the graph's inputs or outputs are what the config declares, as Triton's own backend."""
    graph = {tensor.name: tensor for tensor in given}
    for tensor in declared:
        name, dims = tensor["name"], [*([-1] if batching else []), *map(int, tensor["dims"])]
        if name not in graph:
            raise ValueError(f"the graph has no {name}, which config.pbtxt declares; it has {', '.join(graph)}")
        shape, kind = graph[name].shape, graph[name].type
        if (
            kind != f"tensor({TYPES.get(tensor['data_type'])})"
            or len(shape) != len(dims)
            or any(isinstance(size, int) and dim not in (-1, size) for size, dim in zip(shape, dims, strict=True))
        ):
            raise ValueError(f"{name} is {kind} {shape} in the graph, {tensor['data_type']} {dims} in config.pbtxt")


def _zeros(tensor: dict[str, Any], rows: int) -> npt.NDArray[Any]:
    """A batch of so many rows, as a warm-up of config.pbtxt describes it."""
    return np.zeros([rows, *map(int, tensor["dims"])], pb_utils.triton_string_to_numpy(tensor["data_type"]))


def _tensor(name: str, value: OrtValue) -> pb_utils.Tensor:
    if not value.tensor_size_in_bytes():  # its strides are not what Triton expects, from ONNX Runtime 1.32 on
        return pb_utils.Tensor(name, value.numpy())
    return pb_utils.Tensor.from_dlpack(name, value)


def _places(whole: OrtValue, parts: Sequence[OrtValue]) -> Iterator[tuple[OrtValue, int, int]]:
    """Each part with its address within `whole` and its size in bytes."""
    sizes = [part.tensor_size_in_bytes() for part in parts]
    if sum(sizes) != whole.tensor_size_in_bytes():
        raise ValueError("a tensor's first dimension is not the batch")
    return zip(parts, accumulate(sizes, initial=whole.data_ptr()), sizes, strict=False)


def _error(code: str, text: str) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, getattr(pb_utils.TritonError, code)))
