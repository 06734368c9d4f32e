"""The decoder's graph in ONNX Runtime, with its cache."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnxruntime import OrtValue

from referent.generation.device_memory import Host
from referent.generation.engine import Decisions, Pass

INPUTS = ("input_ids", "position_ids", "mask", "select", "allowed")
FEATURES = "image_features"
OUTPUTS = {"token": np.int64, "logprob": np.float32, "mass": np.float32}


class OnnxDecoder:
    """A `referent.generation.engine.Decoder`: <folder>/model.onnx as `export` writes it, computed at `place`, with the
    `parameters` of its config.pbtxt.

    Keys and values stay where they are computed: a pass gets the rows' own places of the cache by address, and what it
    adds is copied there. An image's features may be an OrtValue of that place; all else comes from this machine.
    """

    def __init__(
        self,
        file: Path,
        slots: int,
        columns: int,
        place: Host | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self._place = place or Host()
        self._session = self._place.session(file, parameters)
        self._binding = self._session.io_binding()  # one for all passes: what stays as it is is bound once
        inputs = {node.name: node for node in self._session.get_inputs()}
        self._names = [name for name in inputs if name not in (*INPUTS, FEATURES)]  # key and value of each layer
        self._dtype = np.float16 if "float16" in inputs[FEATURES].type else np.float32
        self.width: int = inputs[FEATURES].shape[2]  # of image features
        self.slots, self.columns, self.vocabulary = slots, columns, 8 * int(inputs["allowed"].shape[2])
        _, heads, _, width = inputs[self._names[0]].shape
        self._cache = [self._place.columns(heads, width, self._dtype) for _ in self._names]
        self._fresh = [self._place.columns(heads, width, self._dtype) for _ in self._names]
        for cache in self._cache:
            cache.resize(slots, columns)
        self._none = np.zeros((slots, 1, self.width), self._dtype)  # features of passes without an image
        self._past: tuple[int, int, int] | None = None  # what is bound: first slot, rows, columns

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(cache.nbytes for cache in self._cache)

    def run(self, inputs: Pass) -> Decisions:
        batch, new_columns = inputs.input_ids.shape
        past = inputs.mask.shape[2] - new_columns
        held = [np.ascontiguousarray(array) for array in (inputs.input_ids, *inputs[2:6])]
        for name, array in zip(INPUTS, held, strict=True):
            self._binding.bind_cpu_input(name, array)
        self._bind_features(inputs.image_features, batch)
        self._bind_past((inputs.slots.start, batch, past))
        shape, decided = inputs.select.shape, []
        for name, fresh in zip(self._names, self._fresh, strict=True):
            if fresh.shape[::2] != (batch, new_columns):
                fresh.resize(batch, new_columns)
                self._binding.bind_output(f"new_{name}", *self._place.device, self._dtype, fresh.shape, fresh.address())
        for name, dtype in OUTPUTS.items():
            decided.append(np.empty(shape, dtype))
            self._binding.bind_output(name, "cpu", 0, dtype, shape, decided[-1].ctypes.data)
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        for cache, fresh in zip(self._cache, self._fresh, strict=True):
            for row, (slot, start, count) in enumerate(zip(inputs.slots, inputs.starts, inputs.counts, strict=True)):
                cache.take(slot, start, fresh, row, count)
        self._place.wait()
        return Decisions(*decided)

    def warm_up(self) -> None:
        """Computes the longest prefill, so that a device with too little memory fails now."""
        tokens = np.zeros((1, self.columns), np.int64)
        places, sees = np.arange(self.columns)[None], np.tri(self.columns, dtype=np.bool_)[None]
        everything = np.full((1, 1, self.vocabulary // 8), 255, np.uint8)
        self.run(Pass(tokens, None, places, sees, tokens[:, :1], everything, range(1), [0], [self.columns]))

    def keep(self, features: OrtValue) -> OrtValue:
        """A copy of an image's features, (1, K, D), wherever they are, at the place where they are needed."""
        return self._place.keep(features)

    def move(self, source: int, target: int, columns: int) -> None:
        for cache in self._cache:
            cache.take(target, 0, cache, source, columns)
        self._place.wait()

    def _bind_features(self, features: object, batch: int) -> None:
        if isinstance(features, OrtValue):
            self._binding.bind_ortvalue_input(FEATURES, features)
        else:
            held = self._none[:batch] if features is None else np.ascontiguousarray(features, self._dtype)
            self._binding.bind_cpu_input(FEATURES, held)
            self._held = held  # until it has been read

    def _bind_past(self, past: tuple[int, int, int]) -> None:
        """Binds the rows' places in the cache without copying. A prefill has no past, so its address doesn't matter."""
        if past == self._past:
            return
        self._past = None
        slot, batch, columns = past
        for name, cache in zip(self._names, self._cache, strict=True):
            shape = (batch, *cache.shape[1:2], columns, *cache.shape[3:])
            self._binding.bind_input(name, *self._place.device, self._dtype, shape, cache.address(slot))
        self._past = past
