"""Parity: exported graphs must answer as the PyTorch model did, part by part and end to end.

The reference is the checkpoint as it was loaded, with its adapter unmerged, computed in fp32. So the comparison covers
merging the adapter and rounding the weights to fp16. Graphs with int8 or int4 weights are compared with PyTorch with
weights rounded in the same way; the effect of that rounding has a limit of its own.
"""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch
from torch import nn

from export.graphs import Tensors, run
from export.parts import KindParts, parts_of
from export.phases import Advance, unseen
from export.quantize import Rounding, restored
from referent.core.packing import Bucket
from referent.core.spec import ModelSpec
from referent.generation.device_memory import CUDA, Gpu
from referent.modeling.grounding import GroundingModel

FP32_TOLERANCE = 1e-4  # of the range of the reference, which for boxes and scores is 0..1
FP16_TOLERANCE = 5e-3  # of the range of the output that is judged, such as the image's side
INTEGER_TOLERANCE = 5e-2  # likewise, where activations have eight bits and PyTorch's do not
ROUNDING_TOLERANCES = {8: 5e-2}  # likewise, of such weights; what those of four bits cost, evaluation on data says
BATCHES = (1, 2, 3, 4)
RANKED_ROWS = 0.9  # of those of ranked outputs must agree: in the rest, what a tie decides may be decided otherwise


class ParityError(RuntimeError):
    """Two computations that must agree do not, so the model must not be published."""


class Case(NamedTuple):
    """Inputs of the ensemble, and every tensor computed from them."""

    name: str
    inputs: Tensors
    tensors: Tensors  # fp32


class Trial(NamedTuple):
    """The inputs of a case, before anything is computed."""

    batch: int
    bucket: Bucket
    seed: int

    @property
    def name(self) -> str:
        return f"batch {self.batch}, {tuple(self.bucket)}"


def trials(spec: ModelSpec, quick: bool = False) -> list[Trial]:
    """Batches of 1 to 4 over the buckets; `quick` is one of the last bucket, and two of a small one: graphs are traced
    with the second trial, and a batch of one would be taken for all."""
    if quick:
        return [Trial(1, spec.buckets[-1], 0), Trial(2, spec.buckets[:2][-1], 1)]
    pairs = zip(BATCHES, spec.buckets * len(BATCHES), strict=False)
    return [Trial(batch, bucket, seed) for seed, (batch, bucket) in enumerate(pairs)]


def reference(
    model: GroundingModel,
    spec: ModelSpec,
    tried: Sequence[Trial],
    rounding: Rounding | None = None,
    advance: Advance = unseen,
) -> list[Case]:
    """What PyTorch computes for each trial, on the GPU if there is one. Needs memory for the model, and for its vision
    tower or one layer in fp32. With `rounding`, the linear layers of the LLaVA have rounded weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases, parts = [], parts_of(spec)
    examples = [parts.example_inputs(model, spec, *trial) for trial in tried]  # numbers of a CPU: always the same
    model.to(device)
    with fp32_arithmetic(model, rounding, advance), torch.device(device):
        for trial, inputs in zip(tried, examples, strict=True):
            tensors = run(parts.split(model), {name: tensor.to(device) for name, tensor in inputs.items()})
            tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
            cases.append(Case(trial.name, inputs, tensors))
    model.cpu()
    return cases


@contextmanager
def fp32_arithmetic(
    model: GroundingModel, rounding: Rounding | None = None, advance: Advance = unseen
) -> Iterator[None]:
    """A context in which every submodule computes in fp32: its weights are converted, and rounded, only while it is
    called. `advance` gets the number of weights used."""
    stored: dict[nn.Parameter, torch.Tensor] = {}
    converted: dict[nn.Module, list[nn.Parameter]] = {}
    multiplied = {module for module in model.llava.modules() if isinstance(module, nn.Linear)} if rounding else set()

    def fp32(parameter: nn.Parameter, is_rounded: bool) -> torch.Tensor:
        if rounding and is_rounded:
            return restored(parameter.data.cpu().float(), rounding).to(parameter.device)
        return parameter.data.float()

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        converted[module] = [parameter for parameter in module.parameters() if parameter not in stored]
        # of this module alone: an embedding may share its weight with a product, and stays as it is
        linear = {each.weight for each in multiplied.intersection(module.modules())}
        for parameter in converted[module]:
            stored[parameter] = parameter.data
            parameter.data = fp32(parameter, parameter in linear)
        return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)

    def after(module: nn.Module, *_: object) -> None:
        for parameter in converted.pop(module):
            parameter.data = stored.pop(parameter)
            advance(parameter.numel())

    modules = list(model.modules())
    hooks = [module.register_forward_pre_hook(before) for module in modules]
    hooks += [module.register_forward_hook(after, always_call=True) for module in modules]
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False  # of ten bits, in convolutions
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
        for hook in hooks:
            hook.remove()


def compare_rounded(exact: Sequence[Case], rounded: Sequence[Case], rounding: Rounding, parts: KindParts) -> float:
    """The largest change of the judged tensor by rounding the weights. Raises `ParityError` if it is too large for a
    working model."""
    judged = parts.JUDGED
    share = ROUNDING_TOLERANCES.get(rounding.bits)
    allowed = share * parts.RANGES[judged] if share else None
    differences = [0.0]
    for case, other in zip(exact, rounded, strict=True):
        both = ({judged: each.tensors[judged]} for each in (case, other))
        found = check(f"int{rounding.bits} weights, {case.name}", *both, lambda *_: allowed)
        differences.append(found[judged])
    return max(differences)


def verify(
    files: Sequence[Path],
    cases: Sequence[Case],
    tolerance: Callable[[str, torch.Tensor], float | None],
    parts: KindParts,
    mapped: bool,
    chain_only: bool = False,
    advance: Advance = unseen,
) -> dict[str, float]:
    """Compare exported graphs, <step>/model.onnx, with the reference: each part on PyTorch's own tensors, which locates
    an error, and all in a chain. `chain_only` skips the former. One graph is loaded at a time, on the GPU if there is
    one. With `mapped`, weights that a CPU would convert stay in their files.

    Returns the largest difference of the chain by tensor. Raises `ParityError`.
    """
    chains = [dict(case.inputs) for case in cases]
    for file in files:
        graph = None  # its memory, before the next is loaded
        graph = _session(file, mapped)
        for case, chain in zip(cases, chains, strict=True):
            if not chain_only:
                answer = _run_graph(graph, case.tensors)
                expected = {name: case.tensors[name] for name in answer}
                check(f"{file.parent.name}, {case.name}", expected, answer, tolerance, parts.RANKED)
            chain |= _run_graph(graph, chain)
            advance(1)
    worst: dict[str, float] = {}
    for index, (case, chain) in enumerate(zip(cases, chains, strict=True)):
        outputs = {name: tensor for name, tensor in case.tensors.items() if name in chain and name not in case.inputs}
        for name, difference in check(f"all parts, {case.name}", outputs, chain, tolerance, parts.RANKED).items():
            worst[name] = max(difference, worst.get(name, 0.0))
        _control(parts.JUDGED, cases[index - 1].tensors, chain, tolerance)
    return worst


def tolerances(dtype: str, parts: KindParts) -> Callable[[str, torch.Tensor], float | None]:
    """Tensor name and reference -> largest absolute difference allowed; None where it is not bounded. `dtype` is fp32,
    fp16, or integer, where activations are rounded."""

    def fp32(name: str, reference: torch.Tensor) -> float | None:
        return FP32_TOLERANCE * parts.RANGES.get(name, float(reference.max() - reference.min()))

    def of_judged(share: float) -> Callable[[str, torch.Tensor], float | None]:
        return lambda name, reference: share * parts.RANGES[name] if name == parts.JUDGED else None

    return {"fp32": fp32, "fp16": of_judged(FP16_TOLERANCE), "integer": of_judged(INTEGER_TOLERANCE)}[dtype]


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
    """Raises `ParityError` if the answer to other inputs passes, since the check would then prove nothing."""
    rows, slots = (min(sizes) for sizes in zip(other[name].shape[:2], chain[name].shape[:2], strict=True))
    difference = float((other[name][:rows, :slots] - chain[name][:rows, :slots].float()).abs().max())
    allowed = tolerance(name, chain[name].float())
    if allowed is None or difference <= allowed:
        raise ParityError(
            "the check proves nothing: an answer to another input also passes; nothing can be exported with it"
        )


def _session(file: Path, mapped: bool) -> onnxruntime.InferenceSession:
    if torch.cuda.is_available() and CUDA in onnxruntime.get_available_providers():
        return Gpu(0).session(file, {"use_tf32": "0"})
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if mapped:
        # optimised, the graph would hold all weights in fp32, and in its usual order those of many layers at a time
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
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
