"""Parity: exported graphs must answer as the PyTorch model did, part by part and end to end.

The reference is the checkpoint as it was loaded, its adapter beside its base, computed in fp32: what is held against it
includes the merging of the adapter and the rounding of the weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch
from rich.progress import track
from torch import nn

from export.graphs import Tensors, run
from export.parts import KindParts, parts_of
from referent.core.spec import ModelSpec
from referent.modeling.grounding import GroundingModel

FP32_TOLERANCE = 1e-4  # of the range of the reference, which for boxes and scores is 0..1
FP16_TOLERANCE = 5e-3  # of the range of the output that is judged, such as the image's side
INT8_TOLERANCE = 5e-2  # likewise; what it costs on data is for an evaluation to say
BATCHES = (1, 2, 3, 4)
RANKED_ROWS = 0.9  # of those of ranked outputs must agree: in the rest, what a tie decides may be decided otherwise


class ParityError(RuntimeError):
    """Two computations that must agree do not; nothing may be published from them."""


class Case(NamedTuple):
    """Inputs of the ensemble, and every tensor that follows from them."""

    name: str
    inputs: Tensors
    tensors: Tensors  # fp32


def reference(model: GroundingModel, spec: ModelSpec) -> list[Case]:
    """Cases over batches and buckets, computed where there is a GPU on it. Takes the memory of the model as it is and
    of its vision tower, or one layer, in fp32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    cases, parts = [], parts_of(spec)
    pairs = list(zip(BATCHES, spec.buckets * len(BATCHES), strict=False))
    with fp32_arithmetic(model), torch.device(device):
        for seed, (batch, bucket) in enumerate(track(pairs, "answers of PyTorch", transient=True)):
            inputs = parts.example_inputs(model, spec, batch, bucket, seed)
            tensors = run(parts.split(model), {name: tensor.to(device) for name, tensor in inputs.items()})
            tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
            cases.append(Case(f"batch {batch}, {tuple(bucket)}", inputs, tensors))
    model.cpu()
    return cases


@contextmanager
def fp32_arithmetic(model: nn.Module) -> Iterator[None]:
    """Within it every submodule computes in fp32, its weights converted for as long as it is called."""
    stored: dict[nn.Parameter, torch.Tensor] = {}
    converted: dict[nn.Module, list[nn.Parameter]] = {}

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        converted[module] = [parameter for parameter in module.parameters() if parameter not in stored]
        for parameter in converted[module]:
            stored[parameter] = parameter.data
            parameter.data = parameter.data.float()
        return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)

    def after(module: nn.Module, *_: object) -> None:
        for parameter in converted.pop(module):
            parameter.data = stored.pop(parameter)

    modules = list(model.modules())
    hooks = [module.register_forward_pre_hook(before) for module in modules]
    hooks += [module.register_forward_hook(after, always_call=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def verify(files: Sequence[Path], cases: Sequence[Case], dtype: str, parts: KindParts) -> dict[str, float]:
    """Hold exported graphs, <step>/model.onnx, against the reference: each part on PyTorch's own tensors, then all in a
    chain. One graph is loaded at a time; on the GPU where there is one.

    Returns the largest difference of the chain by tensor. Raises `ParityError`.
    """
    tolerance = tolerances(dtype, parts)
    chains = [dict(case.inputs) for case in cases]
    for file in files:
        graph = _session(file, dtype)
        for case, chain in zip(cases, chains, strict=True):
            answer = _run_graph(graph, case.tensors)
            expected = {name: case.tensors[name] for name in answer}
            check(f"{file.parent.name}, {case.name}", expected, answer, tolerance, parts.RANKED)
            chain |= _run_graph(graph, chain)
    worst: dict[str, float] = {}
    for index, (case, chain) in enumerate(zip(cases, chains, strict=True)):
        outputs = {name: tensor for name, tensor in case.tensors.items() if name in chain and name not in case.inputs}
        for name, difference in check(f"all parts, {case.name}", outputs, chain, tolerance, parts.RANKED).items():
            worst[name] = max(difference, worst.get(name, 0.0))
        _control(parts.JUDGED, cases[index - 1].tensors, chain, tolerance)
    return worst


def tolerances(dtype: str, parts: KindParts) -> Callable[[str, torch.Tensor], float | None]:
    """Tensor name and reference -> largest absolute difference allowed; None where it is not bounded."""

    def fp32(name: str, reference: torch.Tensor) -> float | None:
        return FP32_TOLERANCE * parts.RANGES.get(name, float(reference.max() - reference.min()))

    def fp16(name: str, reference: torch.Tensor) -> float | None:
        return FP16_TOLERANCE * parts.RANGES[name] if name == parts.JUDGED else None

    def int8(name: str, reference: torch.Tensor) -> float | None:
        return INT8_TOLERANCE * parts.RANGES[name] if name == parts.JUDGED else None

    return {"fp32": fp32, "fp16": fp16, "int8": int8}[dtype]


def check(
    what: str,
    reference: Tensors,
    actual: Tensors,
    tolerance: Callable[[str, torch.Tensor], float | None],
    ranked: Set[str] = frozenset(),
) -> dict[str, float]:
    """Largest difference by tensor; of the `ranked` among the `RANKED_ROWS` (B, N) that differ least. Raises
    `ParityError` naming the first tensor beyond its tolerance."""
    differences = {}
    for name, expected in reference.items():
        apart = (actual[name].float() - expected.float()).abs()
        rows = apart.flatten(2).amax(-1).flatten() if name in ranked else apart.amax()[None]
        differences[name] = float(rows.sort().values[math.ceil(RANKED_ROWS * len(rows)) - 1])
    for name, difference in differences.items():
        allowed = tolerance(name, reference[name].float())
        if allowed is not None and not difference <= allowed:  # NaN must fail
            raise ParityError(f"{what}: {name} differs by {difference:.2e}; at most {allowed:.2e} is allowed")
    return differences


def _control(name: str, other: Tensors, chain: Tensors, tolerance: Callable[[str, torch.Tensor], float | None]) -> None:
    """The answer to other inputs must not pass, or the check is blind."""
    difference = float((other[name][:1, :1] - chain[name][:1, :1].float()).abs().max())
    allowed = tolerance(name, chain[name].float())
    if allowed is None or difference <= allowed:
        raise ParityError("the check is blind: the answer to another input passes it")


def _session(file: Path, dtype: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()
        return onnxruntime.InferenceSession(file, options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    if dtype == "fp16":  # a CPU computes it in fp32: optimised, the graph would hold all weights in that
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _run_graph(graph: onnxruntime.InferenceSession, tensors: Tensors) -> Tensors:
    feeds = {
        node.name: (tensors[node.name].half() if "float16" in node.type else tensors[node.name]).numpy()
        for node in graph.get_inputs()
    }
    names = [node.name for node in graph.get_outputs()]
    return {name: torch.from_numpy(array) for name, array in zip(names, graph.run(names, feeds), strict=True)}
