"""The same request along three paths: ONNX Runtime in this process, Triton over gRPC, the gateway over HTTP."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
import onnxruntime
from tritonclient.grpc import InferenceServerClient, InferInput

from benchmarks.lib.measuring import Row
from referent.core.bundle import Bundle, load_bundle
from referent.core.contract import dtype_of, part_name
from referent.core.kind import DEFAULTS, Arrays, Options, Prepared
from referent.kinds import load_processor

REPOSITORY = Path("model_repository")
PICTURE = Path("tests/samples/scene-1.jpg")
EXPRESSIONS = [
    *("the truck", "soap", "bell", "the fist", "pineapple", "the fish", "truck on the left", "largest object"),
    *("the bell", "the soap", "fish", "a truck", "the pineapple", "smallest object", "fist", "the largest fish"),
]


class RunningService(NamedTuple):
    """A running `referent serve`."""

    url: str
    grpc_url: str
    process: subprocess.Popen[str]


@contextmanager
def serve(repository: Path = REPOSITORY, options: Sequence[str] = (), **environment: str) -> Iterator[RunningService]:
    """`referent serve` on free ports, its logs dropped, with further options and variables in its environment.

    Raises RuntimeError if it ends before it is ready.
    """
    command = [
        sys.executable,
        "-m",
        "referent",
        "serve",
        "--port",
        "0",
        "--grpc-port",
        "0",
    ]
    command += ["--model-repository", str(repository), *options]
    variables = os.environ | {"REFERENT_METRICS_PORT": "0"} | environment
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=variables
    ) as process:
        try:
            assert process.stdout
            found = (re.search(r"(http://\S+) .*gRPC at (\S+)\)", line) for line in process.stdout)
            ready = next(filter(None, found), None)
            if not ready:
                raise RuntimeError(f"`referent serve` of {repository} ended before it was ready: run it to see why")
            yield RunningService(ready[1], ready[2], process)
        finally:
            process.terminate()
            process.wait()


class Subject:
    """A published model and how to ask for its tensors."""

    def __init__(self, repository: Path, name: str) -> None:
        self.repository, self.name = repository, name
        self.bundle: Bundle = load_bundle(repository, name)[0]
        self.processor = load_processor(repository, self.bundle)
        self.kind = self.processor.kind

    @property
    def graphs(self) -> dict[str, Path]:
        """The exported file of each step, by the step's suffix."""
        return {
            step.suffix: self.repository / part_name(self.name, step) / self.bundle.version / "model.onnx"
            for step in self.kind.steps
        }

    def arrays(self, data: bytes, expressions: Sequence[str], options: Options = DEFAULTS) -> Arrays:
        """The ensemble's tensors, batch 1; the expressions must fit one row."""
        return only_inference(self.processor.prepare(data, expressions, options))


def only_inference(prepared: Prepared) -> Arrays:
    """The ensemble's tensors, batch 1. Raises ValueError where the expressions filled more than one inference."""
    [arrays] = prepared.inferences
    return arrays


def batch(arrays: Sequence[Arrays]) -> Arrays:
    """Several requests as one."""
    return {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}


class InProcess:
    """The three graphs one after another, without Triton."""

    def __init__(self, subject: Subject) -> None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {
            step: onnxruntime.InferenceSession(subject.graphs[step.suffix], options) for step in subject.kind.steps
        }

    def __call__(self, arrays: Arrays) -> Arrays:
        tensors = dict(arrays)
        for step, session in self._sessions.items():
            outputs = session.run(None, {tensor.name: tensors[tensor.name] for tensor in step.inputs})
            tensors |= {tensor.name: output for tensor, output in zip(step.outputs, outputs, strict=False)}
        return tensors


def inference_inputs(subject: Subject, arrays: Arrays) -> list[InferInput]:
    """What tritonclient sends of the ensemble's tensors."""
    inputs = []
    for tensor in subject.kind.inputs:
        inputs.append(InferInput(tensor.name, arrays[tensor.name].shape, dtype_of(tensor, subject.bundle.dtype)))
        inputs[-1].set_data_from_numpy(arrays[tensor.name])
    return inputs


class Ensemble:
    """One gRPC request to Triton."""

    def __init__(self, subject: Subject, grpc_url: str) -> None:
        self._subject, self._client = subject, InferenceServerClient(grpc_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def __call__(self, arrays: Arrays) -> Any:
        inputs = inference_inputs(self._subject, arrays)
        return self._client.infer(self._subject.name, inputs, self._subject.bundle.version)


def step_times(subject: Subject, grpc_url: str) -> list[Row]:
    """Triton's own clock: mean milliseconds of a request in each part since it was loaded. Where tensors stay on the
    device between the parts, the copies take next to nothing."""
    rows: list[Row] = []
    with InferenceServerClient(grpc_url) as client:
        config = client.get_model_config(subject.name, subject.bundle.version).config
        # the launcher calls parts by their digest
        for step, served in zip(subject.kind.steps, config.ensemble_scheduling.step, strict=True):
            found = client.get_inference_statistics(served.model_name, subject.bundle.version)
            clocks = found.model_stats[0].inference_stats
            rows.append({"model": subject.name, "part": step.suffix, "requests": clocks.success.count})
            for name, clock in (
                ("queue", clocks.queue),
                ("copies in", clocks.compute_input),
                ("run", clocks.compute_infer),
                ("copies out", clocks.compute_output),
            ):
                rows[-1][f"{name} ms"] = clock.ns / clock.count / 1e6 if clock.count else None
    return rows


class Body(NamedTuple):
    """An encoded request, made once so that making it isn't measured."""

    content: bytes
    headers: dict[str, str]


def form(data: bytes, expressions: Sequence[str], model: str) -> Body:
    """multipart/form-data of POST /v1/ground."""
    fields = {"expression": list(expressions), "model": model}
    request = httpx.Request("POST", "http://gateway", files={"image": ("image", data)}, data=fields)
    return Body(request.read(), {"Content-Type": request.headers["content-type"]})


class Gateway:
    """One HTTP request over a connection that stays open, with the standard library's client: httpx costs 1 ms."""

    def __init__(self, url: str, timeout_s: float = 60) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._connection.close()

    def __call__(self, body: Body) -> dict[str, Any]:
        try:
            response = self._send(body)
        except ConnectionError:  # the service closes one that was idle for 5 s
            self._connection.close()
            response = self._send(body)
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"the service answered {response.status}: {content[:500].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(content)
        return answer

    def _send(self, body: Body) -> http.client.HTTPResponse:
        self._connection.request("POST", "/v1/ground", *body)
        return self._connection.getresponse()
