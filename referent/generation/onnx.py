"""The decoder's graph in ONNX Runtime, with its cache."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from referent.generation.engine import Decisions, Pass

INPUTS = ("input_ids", "image_features", "position_ids", "mask", "select", "allowed")
OUTPUTS = ("token", "logprob", "mass")


class OnnxDecoder:
    """A `referent.generation.engine.Decoder` on the CPU: <folder>/model.onnx as `export` writes it."""

    def __init__(self, file: Path, slots: int, columns: int, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # spinning threads of several sessions on few cores cost up to 3.6x
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        inputs = {node.name: node for node in self._session.get_inputs()}
        self._names = [name for name in inputs if name not in INPUTS]  # key and value of each layer
        self._dtype = np.float16 if "float16" in inputs["image_features"].type else np.float32
        self.width: int = inputs["image_features"].shape[2]  # of image features
        self.slots, self.columns, self.vocabulary = slots, columns, 8 * int(inputs["allowed"].shape[2])
        _, heads, _, width = inputs[self._names[0]].shape
        self.cache: list[npt.NDArray[Any]] = [
            np.zeros((slots, heads, columns, width), self._dtype) for _ in self._names
        ]

    @property
    def cache_bytes(self) -> int:
        """Of keys and values."""
        return sum(cache.nbytes for cache in self.cache)

    def run(self, inputs: Pass) -> Decisions:
        batch, new_columns = inputs.input_ids.shape
        past = inputs.mask.shape[2] - new_columns
        features = inputs.image_features
        if features is None:
            features = np.zeros((batch, 1, self.width))
        arrays = (inputs.input_ids, features, inputs.position_ids, inputs.mask, inputs.select, inputs.allowed)
        dtypes = {"image_features": self._dtype}
        bound = {n: np.ascontiguousarray(a, dtypes.get(n)) for n, a in zip(INPUTS, arrays, strict=True)}
        binding = self._session.io_binding()
        for name, array in bound.items():
            binding.bind_cpu_input(name, array)
        fresh = []
        for name, cache in zip(self._names, self.cache, strict=True):
            _, heads, _, width = cache.shape
            # the rows' own places in the cache: nothing is copied; a prefill has no past, whatever the address
            binding.bind_input(
                name, "cpu", 0, self._dtype, (batch, heads, past, width), cache[inputs.slots.start].ctypes.data
            )
            new = np.empty((batch, heads, new_columns, width), self._dtype)
            binding.bind_output(f"new_{name}", "cpu", 0, self._dtype, new.shape, new.ctypes.data)
            fresh.append(new)
        for name in OUTPUTS:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        for cache, new in zip(self.cache, fresh, strict=True):
            for b, (slot, start, count) in enumerate(zip(inputs.slots, inputs.starts, inputs.counts, strict=True)):
                cache[slot, :, start : start + count] = new[b, :, :count]
        return Decisions(*(value.numpy() for value in binding.get_outputs()[-len(OUTPUTS) :]))

    def move(self, source: int, target: int, columns: int) -> None:
        for cache in self.cache:
            cache[target, :, :columns] = cache[source, :, :columns]
