"""Latency of one picture: in-process ONNX Runtime, the Triton ensemble, the gateway; side by side in one run.

    .venv/bin/python -m benchmarks.latency [--rounds 5] [--calls 40]

Blocks alternate (A-B-C-A-B-C ...) so that a slow moment of the machine falls on all alike; the first of each warms up.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import tritonclient.grpc as triton
from PIL import Image

from referent.bundle import load_bundle, load_encoder
from referent.processor import Inputs, Processor
from referent.tensors import ENSEMBLE_INPUTS, STEPS, dtype_of, part_name

REPOSITORY = Path("model_repository")
PICTURE = Path("tests/samples/scene-1.jpg")
EXPRESSIONS = ["the truck", "soap", "bell", "the fist", "pineapple", "the fish", "truck on the left", "largest object"]


def feeds(inputs: Inputs) -> dict[str, np.ndarray]:
    """The ensemble's tensors of the first row, batch 1."""
    row = inputs.rows[0]
    arrays = (inputs.image, row.input_ids, row.segment_ids, row.loc_positions)
    return {tensor.name: array[None] for tensor, array in zip(ENSEMBLE_INPUTS, arrays, strict=True)}


def in_process(version: str) -> Callable[[dict[str, np.ndarray]], None]:
    """The three graphs one after another, without Triton."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = [
        onnxruntime.InferenceSession(REPOSITORY / part_name("mini", step) / version / "model.onnx", options)
        for step in STEPS
    ]

    def call(arrays: dict[str, np.ndarray]) -> None:
        tensors = dict(arrays)
        for step, session in zip(STEPS, sessions, strict=True):
            outputs = session.run(None, {tensor.name: tensors[tensor.name] for tensor in step.inputs})
            tensors |= {tensor.name: output for tensor, output in zip(step.outputs, outputs, strict=True)}

    return call


def ensemble(client: triton.InferenceServerClient) -> Callable[[dict[str, np.ndarray]], None]:
    """One gRPC request."""

    def call(arrays: dict[str, np.ndarray]) -> None:
        inputs = []
        for tensor in ENSEMBLE_INPUTS:
            entry = triton.InferInput(tensor.name, arrays[tensor.name].shape, dtype_of(tensor, "fp32"))
            entry.set_data_from_numpy(arrays[tensor.name])
            inputs.append(entry)
        client.infer("mini", inputs)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running `referent serve`")
    parser.add_argument("--triton", default="127.0.0.1:8001", help="its Triton")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=40, help="in a block")
    arguments = parser.parse_args()
    bundle, _ = load_bundle(REPOSITORY, "mini")
    processor = Processor(bundle, load_encoder(REPOSITORY, bundle))
    picture, data = Image.open(PICTURE).convert("RGB"), PICTURE.read_bytes()
    http, client = httpx.Client(base_url=arguments.url), triton.InferenceServerClient(arguments.triton)
    stages: dict[str, list[float]] = {}

    def gateway(expressions: list[str]) -> None:
        response = http.post("/v1/ground", files={"image": ("p.jpg", data)}, data={"expression": expressions})
        for stage, milliseconds in response.raise_for_status().json()["timings_ms"].items():
            stages.setdefault(stage, []).append(milliseconds)

    chain, remote = in_process(bundle.version), ensemble(client)
    print("| expressions | path | median ms | min | max | ratio to in-process |\n|---|---|---|---|---|---|")
    for count in (1, 8):
        expressions = EXPRESSIONS[:count]
        arrays = feeds(processor.preprocess(picture, expressions))
        paths: dict[str, Callable[[], None]] = {
            "in-process ONNX Runtime": lambda arrays=arrays: chain(arrays),
            "Triton ensemble, gRPC": lambda arrays=arrays: remote(arrays),
            "gateway, HTTP": lambda expressions=expressions: gateway(expressions),
        }
        times: dict[str, list[float]] = {name: [] for name in paths}
        for block in range(arguments.rounds + 1):
            if block == 1:
                stages.clear()
            for name, call in paths.items():
                for _ in range(arguments.calls):
                    start = time.perf_counter()
                    call()
                    if block:
                        times[name].append(1000 * (time.perf_counter() - start))
        base = statistics.median(times["in-process ONNX Runtime"])
        for name, values in times.items():
            median = statistics.median(values)
            print(f"| {count} | {name} | {median:.1f} | {min(values):.1f} | {max(values):.1f} | {median / base:.2f} |")
        for stage, values in stages.items():
            print(f"| {count} | - gateway's own clock: {stage} | {statistics.median(values):.1f} | | | |")


if __name__ == "__main__":
    main()
