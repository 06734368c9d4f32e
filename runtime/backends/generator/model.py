"""Triton backend `generator`: <model>/<version>/model.onnx writes answers, many requests at once.

`execute` queues requests and returns; the writer's thread answers each through its response sender. In this way
ordinary unary calls, also of an ensemble, can join a batch between any two passes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from onnxruntime import OrtValue

from referent.core.bundle import TOKENIZER_FILE
from referent.core.contract import IMAGE_FEATURES, INPUT_IDS, SEGMENT_IDS
from referent.core.grammar import GENERATION_FILE, GenerationFile
from referent.generation.device_memory import Gpu, Host
from referent.generation.engine import DecoderRow
from referent.generation.onnx import OnnxDecoder
from referent.generation.outputs import outputs_of
from referent.generation.questions import QuestionError, load_tokenizer, question_of
from referent.generation.writer import RefusedError, Writer, WriterLoad
from referent.kinds.generator import LABELS, MAX_INSTANCES, TIMEOUT_MS

MAX_WAITING = 64  # requests, where the config's parameter `max_waiting` does not say


class TritonPythonModel:
    """One instance of one version of a generator."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        parameters = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        self.settings = GenerationFile.model_validate_json((folder / GENERATION_FILE).read_text("utf-8"))
        on_gpu = args["model_instance_kind"] == "GPU"
        place = Gpu(int(args["model_instance_device_id"])) if on_gpu else Host()
        decoder = OnnxDecoder(folder / "model.onnx", self.settings.slots, self.settings.columns, place, parameters)
        if on_gpu:
            decoder.warm_up()
        self.keep = decoder.keep
        self.metrics = Metrics({"model": args["model_name"], "version": args["model_version"]}, decoder.cache_bytes)
        tokenizer_json = (folder / TOKENIZER_FILE).read_text("utf-8")
        tokenizer = load_tokenizer(tokenizer_json, decoder.vocabulary, self.settings.eos_token_id)
        max_waiting = int(parameters.get("max_waiting", MAX_WAITING))
        self.writer = Writer(decoder, tokenizer, self.settings, max_waiting, self.metrics.observe)

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Queues each request; its answer comes through its sender."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._submit(request, sender)
            except Exception as error:
                self._answer(sender, error)

    def finalize(self) -> None:
        """Requests in flight are answered, waiting ones are refused; then the memory is given back."""
        self.writer.stop()
        self.metrics.clear()
        del self.writer, self.keep

    def _submit(self, request: pb_utils.InferenceRequest, sender: Any) -> None:
        names = [tensor.name for tensor in (INPUT_IDS, SEGMENT_IDS, LABELS, TIMEOUT_MS, MAX_INSTANCES)]
        arrays = {name: _array(request, name) for name in names}
        timeout_ms = int(arrays[TIMEOUT_MS.name][0, 0])
        deadline = time.monotonic() + timeout_ms / 1000 if timeout_ms > 0 else math.inf
        given = pb_utils.get_input_tensor_by_name(request, IMAGE_FEATURES.name)
        features = self.keep(OrtValue.from_dlpack(given.to_dlpack()))  # the request's memory is Triton's again
        self.writer.submit(question_of(arrays, features, deadline), partial(self._answer, sender))

    def _answer(self, sender: Any, outcome: list[DecoderRow] | Exception) -> None:
        if isinstance(outcome, Exception):
            response = pb_utils.InferenceResponse(error=_error(outcome))
        else:
            outputs = outputs_of(outcome, self.settings.grammar)
            response = pb_utils.InferenceResponse([_tensor(*named) for named in outputs.items()])
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Metrics:
    """Metrics that Triton lacks: to Triton, a request is in execution from the moment when it is queued."""

    def __init__(self, labels: dict[str, str], cache_bytes: int) -> None:
        def metric(name: str, description: str, kind: Any = pb_utils.MetricFamily.GAUGE) -> Any:
            family = pb_utils.MetricFamily(name=f"referent_generator_{name}", description=description, kind=kind)
            return family.Metric(labels=labels), family

        counter = pb_utils.MetricFamily.COUNTER
        self._families = {
            "waiting": metric("waiting", "Requests that wait for a slot"),
            "active": metric("active", "Rows that are being written"),
            "passes": metric("passes_total", "Passes of the decoder", counter),
            "tokens": metric("tokens_total", "Tokens that passes computed", counter),
        }
        self._cache, self._cache_family = metric("cache_bytes", "Memory of keys and values")
        self._cache.set(cache_bytes)
        self._before = WriterLoad(0, 0, 0, 0)

    def observe(self, load: WriterLoad) -> None:
        """Called after every pass, and when something begins to wait."""
        for name, value in load._asdict().items():
            metric, _ = self._families[name]
            if name in ("waiting", "active"):
                metric.set(value)
            else:
                metric.increment(value - getattr(self._before, name))
        self._before = load

    def clear(self) -> None:
        """Sets all metrics to zero: nothing waits, and no memory is used."""
        self._cache.set(0)
        for name in ("waiting", "active"):
            self._families[name][0].set(0)


def _array(request: pb_utils.InferenceRequest, name: str) -> np.ndarray:
    return np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))  # as_numpy is wrong under numpy 2


def _tensor(name: str, value: np.ndarray) -> pb_utils.Tensor:
    if not value.size:
        return pb_utils.Tensor(name, value)
    return pb_utils.Tensor.from_dlpack(name, OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)))


def _error(error: Exception) -> pb_utils.TritonError:
    if isinstance(error, RefusedError):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
    if isinstance(error, QuestionError):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    pb_utils.Logger.log_error(f"{type(error).__name__}: {error}")
    return pb_utils.TritonError("inference failed; the server's log has the cause", pb_utils.TritonError.INTERNAL)
