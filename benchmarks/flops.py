"""Floating-point operations of an exported model, counted in its graphs: the most that packing can save."""

import math
from pathlib import Path

import onnx
from onnx import NodeProto, shape_inference

from benchmarks.lib.service import Subject

Shapes = dict[str, list[int]]


def model_flops(subject: Subject, tokens: int, slots: int) -> float:
    """One pass of all parts, batch 1, for a row of `tokens` with `slots` expressions."""
    return sum(graph_flops(file, tokens, slots) for file in subject.graphs.values())


def graph_flops(file: Path, tokens: int, slots: int) -> float:
    """Multiplications and additions of matrix products, convolutions and attention; the rest is negligible."""
    model = onnx.load(file, load_external_data=False)
    sizes = {"batch": 1, "tokens": tokens, "slots": slots}  # the names of export.graphs
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    del model.graph.value_info[:]
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: Shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return sum(_node_flops(node, shapes) for node in graph.node)


def _node_flops(node: NodeProto, shapes: Shapes) -> float:
    if node.op_type in ("MatMul", "Gemm"):
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]
    if node.op_type == "Conv":
        return 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "Attention":  # (B, H, T, d): scores and their product with the values
        query, key = shapes[node.input[0]], shapes[node.input[1]]
        return 4 * math.prod(query) * key[-2]
    return 0
