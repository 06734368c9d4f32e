"""Parity: exported graphs must answer as the PyTorch model does, part by part and end to end."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

from export.parts import Part, Tensors, example_inputs, run
from referent.bundle import ModelSpec
from referent.modeling.grounding import GroundingModel
from referent.tensors import BOXES, SCORES

FP32_TOLERANCE = 1e-4  # of the range of the reference, which for boxes and scores is 0..1
FP16_BOX_TOLERANCE = 5e-3  # of the image's side: the end that matters
INT8_BOX_TOLERANCE = 5e-2  # likewise; what it costs on data is for an evaluation to say
BATCHES = (1, 2, 3, 4)


class ParityError(RuntimeError):
    """Two computations that must agree do not; nothing may be published from them."""


def tolerances(dtype: str) -> Callable[[str, torch.Tensor], float | None]:
    """Tensor name and reference -> largest absolute difference allowed; None where it is not bounded."""

    def fp32(name: str, reference: torch.Tensor) -> float | None:
        bounded = name in (BOXES.name, SCORES.name)
        return FP32_TOLERANCE * (1.0 if bounded else float(reference.max() - reference.min()))

    def fp16(name: str, reference: torch.Tensor) -> float | None:
        return FP16_BOX_TOLERANCE if name == BOXES.name else None

    def int8(name: str, reference: torch.Tensor) -> float | None:
        return INT8_BOX_TOLERANCE if name == BOXES.name else None

    return {"fp32": fp32, "fp16": fp16, "int8": int8}[dtype]


def check(
    what: str, reference: Tensors, actual: Tensors, tolerance: Callable[[str, torch.Tensor], float | None]
) -> dict[str, float]:
    """Largest difference by tensor. Raises `ParityError` naming the first tensor beyond its tolerance."""
    differences = {
        name: float((actual[name].float() - expected.float()).abs().max()) for name, expected in reference.items()
    }
    for name, difference in differences.items():
        allowed = tolerance(name, reference[name].float())
        if allowed is not None and not difference <= allowed:  # NaN must fail
            raise ParityError(f"{what}: {name} differs by {difference:.2e}; at most {allowed:.2e} is allowed")
    return differences


def verify(
    model: GroundingModel, parts: tuple[Part, ...], files: list[Path], spec: ModelSpec, dtype: str
) -> dict[str, float]:
    """Hold exported graphs against `parts` over batches and buckets: each part on PyTorch's own inputs, then all in a
    chain. Returns the largest difference of the chain by tensor. Raises `ParityError`."""
    graphs = {part.step.suffix: _session(file) for part, file in zip(parts, files, strict=True)}
    tolerance = tolerances(dtype)
    worst: dict[str, float] = {}
    for seed, (batch, bucket) in enumerate(zip(BATCHES, spec.buckets * len(BATCHES), strict=False)):
        inputs = example_inputs(model, spec, batch, *bucket, seed=seed)
        reference, chained = run(parts, inputs), dict(inputs)
        outputs = {tensor.name: reference[tensor.name] for part in parts for tensor in part.outputs}
        for part in parts:
            graph, case = graphs[part.step.suffix], f"{part.step.suffix}, batch {batch}, {bucket}"
            expected = {tensor.name: reference[tensor.name] for tensor in part.outputs}
            check(case, expected, _run_graph(graph, part, reference), tolerance)
            chained |= _run_graph(graph, part, chained)
        for name, difference in check(f"all parts, batch {batch}, {bucket}", outputs, chained, tolerance).items():
            worst[name] = max(difference, worst.get(name, 0.0))
        _control(run(parts, example_inputs(model, spec, batch, *bucket, seed=seed + 1000)), chained, tolerance)
    return worst


def _control(other: Tensors, chained: Tensors, tolerance: Callable[[str, torch.Tensor], float | None]) -> None:
    """The answer to other inputs must not pass, or the check is blind."""
    try:
        check("control", {BOXES.name: other[BOXES.name]}, chained, tolerance)
    except ParityError:
        return
    raise ParityError("the check is blind: boxes of different inputs pass it")


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run_graph(graph: onnxruntime.InferenceSession, part: Part, tensors: Tensors) -> Tensors:
    types = {node.name: node.type for node in graph.get_inputs()}
    feeds = {
        tensor.name: tensors[tensor.name]
        .to(torch.float16 if "float16" in types[tensor.name] else tensors[tensor.name].dtype)
        .numpy()
        for tensor in part.step.inputs
    }
    outputs = graph.run([tensor.name for tensor in part.outputs], feeds)
    return {tensor.name: torch.from_numpy(array) for tensor, array in zip(part.outputs, outputs, strict=True)}
