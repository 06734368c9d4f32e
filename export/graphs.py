"""Parts of a model as modules with the tensors of the contract, and their ONNX export.

A part is traced with stand-ins for its large weights, which have a shape and no content. Each weight is converted,
transposed and rounded when it is written, one after another, so memory does not grow with the model.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim

from export.phases import Advance, unseen
from export.quantize import Rounding, restore_halves, round_products, store_halves
from referent.core.contract import Step, Tensor, dtype_of

OPSET = 23  # native RMSNormalization, RotaryEmbedding and Attention; 24 loses the fused forms
EXTERNAL_DATA_BYTES = 1_500_000_000  # a protobuf cannot exceed 2 GB
EXTERNAL_TENSOR_BYTES, PAGE_BYTES = 1024, 4096  # smaller ones stay in the graph; mapped files begin tensors at a page
TRANSPOSED = ".transposed"  # ends the names of such weights
DYNAMIC = {
    "B": Dim("batch", min=1, max=1024), "T": Dim("tokens", min=2, max=8192), "N": Dim("slots", min=1, max=1024),
    "P": Dim.DYNAMIC, "C": Dim.DYNAMIC, "F": Dim.DYNAMIC,
}  # fmt: skip


Tensors = dict[str, torch.Tensor]
StandIns = dict[nn.Parameter, torch.Tensor]  # and the weights that they stand for


class Part(NamedTuple):
    """A step of the contract, the module that computes it, and the step's outputs that this model has."""

    step: Step
    module: nn.Module
    outputs: tuple[Tensor, ...]


@torch.inference_mode()
def run(parts: Sequence[Part], inputs: Tensors) -> Tensors:
    """Every tensor of the ensemble, computed by the modules one after another."""
    tensors = dict(inputs)
    for part in parts:
        results = part.module(*(tensors[tensor.name] for tensor in part.step.inputs))
        results = results if isinstance(results, tuple) else (results,)
        tensors |= {tensor.name: result for tensor, result in zip(part.outputs, results, strict=True)}
    return tensors


@contextmanager
def stand_ins(model: nn.Module, dtype: torch.dtype) -> Iterator[StandIns]:
    """Within it the model computes in `dtype`, and its matrices are stand-ins; the value has their weights as stored.

    Buffers that no checkpoint stores, such as the frequencies of rotary embeddings, stay as they are.
    """
    kept = [(parameter, parameter.data) for parameter in model.parameters() if parameter.is_floating_point()]
    found: StandIns = {}
    for parameter, data in kept:
        if parameter.ndim > 1:
            found[parameter] = data
            parameter.data = torch.zeros((), dtype=dtype, device=data.device).expand(data.shape)
        else:
            parameter.data = data.to(dtype)
    stored = model.state_dict(keep_vars=True).items()
    buffers = {name: x for name, x in stored if not isinstance(x, nn.Parameter) and x.is_floating_point()}
    for (
        name,
        buffer,
    ) in buffers.items():  # anew: one that was loaded is a view of its file, and torch.export looks there
        _set_buffer(model, name, buffer.to(dtype))
    try:
        yield found
    finally:
        for parameter, data in kept:
            parameter.data = data
        for name, buffer in buffers.items():
            _set_buffer(model, name, buffer)


def _set_buffer(model: nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, value)


def export_onnx(
    part: Part,
    tensors: Tensors,
    dtype: str,
    file: Path,
    weights: StandIns | None = None,
    rounding: Rounding | None = None,
    advance: Advance = unseen,
    halves: bool = False,
) -> None:
    """Write a part as <folder>/model.onnx; weights go beside it where they are large.

    `tensors` are an example of each tensor of the ensemble, fp32 where they are floats. `weights` are what `stand_ins`
    gave, where the model has them; with `rounding` those of matrix products are rounded, with `halves` all weights are
    stored in half. `advance` is told shares of 1 of what is to be written.
    """
    examples = {
        tensor.name: tensors[tensor.name].half() if dtype_of(tensor, dtype) == "FP16" else tensors[tensor.name]
        for tensor in part.step.inputs
    }
    arguments = tuple(examples[tensor.name] for tensor in part.step.inputs)
    axes = [_dynamic_axes(tensor) for tensor in part.step.inputs]
    named = sum(p.kind is not p.VAR_POSITIONAL for p in signature(part.module.forward).parameters.values())
    shapes = (*axes[:named], *([tuple(axes[named:])] if axes[named:] else []))
    program = torch.onnx.export(
        part.module.eval(), arguments, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes,
        input_names=[tensor.name for tensor in part.step.inputs],
        output_names=[tensor.name for tensor in part.outputs], verbose=False, optimize=False,
    )  # fmt: skip
    assert program is not None  # only with dynamo=False, or when a file is given
    weights = weights or {}
    matrices = {name: p for name, p in part.module.named_parameters(remove_duplicate=False) if p in weights}
    for name in matrices.keys() & program.model.graph.initializers.keys():
        program.model.graph.initializers[name].const_value = None  # nothing can be computed from a stand-in
    with _quiet("onnx_ir.passes.common.initializer_deduplication"):  # it warns of each constant that has no value
        program.optimize()
    graph = program.model.graph
    for name in [name for name in graph.initializers if name in matrices]:
        _fill(graph, graph.initializers[name], matrices[name].dtype, weights[matrices[name]], rounding is not None)
    if rounding:
        round_products(graph, rounding, {f"{name}{TRANSPOSED}" for name in matrices})
    if halves:
        store_halves(graph)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of the machine that exported
    _save(program.model, file, advance)


def quantize(source: Path, file: Path, rounding: Rounding | None) -> None:
    """Write a graph once more with rounded weights, or with fp32 ones; both from what may be stored in half."""
    model = ir.load(source)
    restore_halves(model.graph)
    if rounding:
        round_products(model.graph, rounding)
    _save(model, file, unseen)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fill(graph: ir.Graph, value: ir.Value, dtype: torch.dtype, weight: torch.Tensor, always_turn: bool) -> None:
    """Puts a weight where its stand-in is, transposed where the graph transposes it for one product; a weight that has
    other uses too is there twice then, if `always_turn`, or else is transposed by the graph."""
    assert value.name
    for transpose in [node for node, _ in value.uses() if node.op_type == "Transpose"]:  # of a linear layer
        if always_turn or len(value.uses()) == 1:
            name = value.name + TRANSPOSED
            if name not in graph.initializers:
                tensor = _lazy(name, weight, dtype, transposed=True)
                turned = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
                graph.register_initializer(turned)
            ir.convenience.replace_all_uses_with(transpose.outputs[0], graph.initializers[name])
            graph.remove(transpose, safe=True)
    if value.uses():
        value.const_value = _lazy(value.name, weight, dtype)
    else:
        del graph.initializers[value.name]


def _lazy(name: str, weight: torch.Tensor, dtype: torch.dtype, transposed: bool = False) -> ir.LazyTensor:
    """A weight that is converted when it is written."""
    shape = weight.shape[::-1] if transposed else weight.shape

    def value() -> ir.Tensor:
        converted = weight.detach().cpu().to(dtype)
        return ir.Tensor((converted.T if transposed else converted).contiguous().numpy(), name=name)

    kinds = {torch.float16: ir.DataType.FLOAT16, torch.float32: ir.DataType.FLOAT}
    return ir.LazyTensor(value, kinds[dtype], ir.Shape(shape), name=name)


def _save(model: ir.Model, file: Path, advance: Advance) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    constants = [value.const_value for value in model.graph.initializers.values()]
    sizes = [constant.nbytes for constant in constants if constant is not None]
    total = sum(sizes)

    def written(tensor: ir.TensorProtocol, _: object) -> None:
        advance(tensor.nbytes / total)

    if total <= EXTERNAL_DATA_BYTES:
        ir.save(model, file)
    else:
        data = f"{file.name}.data"
        ir.save(model, file, None, data, EXTERNAL_TENSOR_BYTES, callback=written, alignment=PAGE_BYTES)


def _dynamic_axes(tensor: Tensor) -> dict[int, Dim]:
    return {axis: DYNAMIC[letter] for axis, letter in enumerate(("B", *tensor.shape)) if letter in DYNAMIC}
