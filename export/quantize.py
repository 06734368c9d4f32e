"""Smaller weights: of matrix products as integers of eight or four bits, or of everything in half precision.

Each block of integers has a scale of its own.

ONNX Runtime's operator `MatMulNBits` multiplies with them. Where weights have four bits, activations stay floats. Where
they have eight, CPUs have a fast kernel for activations of eight bits alone: each block of each row is rounded by
itself, so that an answer does not depend on what is batched with it.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

Array = npt.NDArray[Any]
BLOCK = 32  # weights of a row of a layer that have one scale
FLOATS, INTEGERS = 0, 4  # what activations are, as `accuracy_level` has it
DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators


class Rounding(NamedTuple):
    """To how many bits, and how many weights have a scale in common."""

    bits: int
    block: int = BLOCK

    @property
    def activations(self) -> int:
        """`FLOATS` or `INTEGERS`."""
        return INTEGERS if self.bits == 8 else FLOATS


ROUNDINGS = {"int8": Rounding(8), "int4": Rounding(4)}
HALF = "fp16"
WORTH_HALVING = 1024  # numbers in a constant
STORED = (*ROUNDINGS, HALF)  # as which weights can be stored


def rounded(weight: Array, rounding: Rounding) -> tuple[Array, Array]:
    """Rounds a matrix (K, N), fp32 or fp16, as MatMulNBits has it, symmetric about 0.

    Returns values (N, blocks, block * bits / 8) uint8 and scales (N, blocks) of the weight's dtype.
    """
    bits, block = rounding
    inputs, outputs = weight.shape
    blocks = -(-inputs // block)
    missing = blocks * block - inputs
    whole = np.ascontiguousarray(np.pad(weight, ((0, missing), (0, 0))) if missing else weight)  # strides aren't heeded
    values = np.zeros((outputs, blocks, block * bits // 8), np.uint8)
    scales = np.zeros((outputs, blocks), whole.dtype)
    zero_points = np.zeros((outputs, -(-blocks * bits // 8)), np.uint8)  # all in the middle
    quantize = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}[bits]
    quantize(values, whole, scales, zero_points, block, outputs, len(whole), True)
    return values, scales


def restored(weight: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """What is left of a linear layer's weight (N, K) once it is rounded, in its own dtype."""
    values, scales = rounded(weight.t().contiguous().numpy(), rounding)  # numpy transposes ten times as slowly
    if rounding.bits == 4:
        values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:2], -1)
    whole = values.astype(scales.dtype)
    whole -= 2 ** (rounding.bits - 1)
    whole *= scales[..., None]
    return torch.from_numpy(whole.reshape(len(whole), -1)[:, : weight.shape[1]])


def round_products(graph: ir.Graph, rounding: Rounding, names: Collection[str] | None = None) -> None:
    """Has the matrix products with constants of `graph`, or with those of these names, take rounded ones, each of which
    is rounded when it is written."""
    for product in [node for node in graph if node.op_type == "MatMul" and not node.domain]:
        constant = product.inputs[1]
        if constant is None or constant.const_value is None or len(constant.const_value.shape) != 2:
            continue
        if names is None or constant.name in names:
            _round_product(graph, product, constant, rounding)
            if not constant.uses():
                del graph.initializers[constant.name]
    graph.opset_imports[DOMAIN] = 1


def store_halves(graph: ir.Graph) -> None:
    """Stores large fp32 constants in half. The graph casts them back, which ONNX Runtime does once, on loading."""
    for value in [*graph.initializers.values()]:
        constant = value.const_value
        if constant is None or value.name is None or value.dtype != ir.DataType.FLOAT or constant.size < WORTH_HALVING:
            continue
        name = f"{value.name}.{HALF}"
        half = ir.LazyTensor(partial(_half, constant, name), ir.DataType.FLOAT16, ir.Shape(constant.shape), name=name)
        stored = ir.Value(name=name, shape=half.shape, type=ir.TensorType(half.dtype), const_value=half)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=name)
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        graph.insert_before(graph[0], cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[value.name]
        cast.outputs[0].name = value.name
        graph.register_initializer(stored)


def restore_halves(graph: ir.Graph) -> None:
    """What `store_halves` stored is fp32 again."""
    for cast in [node for node in graph if node.op_type == "Cast" and (node.name or "").endswith(f".{HALF}")]:
        stored, whole = cast.inputs[0], cast.outputs[0]
        assert stored is not None
        assert stored.const_value is not None
        assert whole.name
        tensor = ir.Tensor(stored.const_value.numpy().astype(np.float32), name=whole.name)
        value = ir.Value(name=whole.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        ir.convenience.replace_all_uses_with(whole, value)
        graph.remove(cast, safe=True)
        del graph.initializers[str(stored.name)]
        graph.register_initializer(value)


def _half(constant: ir.TensorProtocol, name: str) -> ir.Tensor:
    return ir.Tensor(constant.numpy().astype(np.float16), name=name)


def _round_product(graph: ir.Graph, product: ir.Node, constant: ir.Value, rounding: Rounding) -> None:
    weight, (bits, block) = constant.const_value, rounding
    assert weight is not None
    inputs, outputs = map(int, weight.shape)
    blocks = -(-inputs // block)
    shapes = (outputs, blocks, block * bits // 8), (outputs, blocks)
    halves = _Halves(weight, rounding)
    constants = []
    for place, kind in enumerate((ir.DataType.UINT8, weight.dtype)):
        name = f"{constant.name}.int{bits}.{('values', 'scales')[place]}"
        if name not in graph.initializers:  # another product has it too
            tensor = ir.LazyTensor(partial(halves.tensor, place, name), kind, ir.Shape(shapes[place]), name=name)
            graph.register_initializer(
                ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(kind), const_value=tensor)
            )
        constants.append(graph.initializers[name])
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    attributes["accuracy_level"] = rounding.activations
    new = ir.node("MatMulNBits", [product.inputs[0], *constants], attributes, domain=DOMAIN, name=product.name)
    before = product.outputs[0]
    new.outputs[0].shape, new.outputs[0].type = before.shape, before.type
    graph.insert_before(product, new)
    ir.convenience.replace_all_uses_with(before, new.outputs[0], replace_graph_outputs=True)
    new.outputs[0].name = before.name
    graph.remove(product, safe=True)


class _Halves:
    """Values and scales of a weight, made when they are asked for. They are written one after the other: the second is
    kept until then, and nothing for longer."""

    def __init__(self, weight: ir.TensorProtocol, rounding: Rounding) -> None:
        self._weight, self._rounding = weight, rounding
        self._kept: dict[int, Array] = {}

    def tensor(self, place: int, name: str) -> ir.Tensor:
        """The values (place 0) or scales (1)."""
        if place not in self._kept:
            self._kept = dict(enumerate(rounded(self._weight.numpy(), self._rounding)))
        return ir.Tensor(self._kept.pop(place), name=name)
