"""A model that computes nothing, with another model's tensors: its requests show the cost of serving alone."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.publish import publish
from referent.core.bundle import TOKENIZER_FILE, load_bundle
from referent.core.contract import Step, Tensor, dims_of, dtype_of, part_name
from referent.kinds import kind_of
from referent.kinds.head import BOX_HEAD, LANGUAGE_MODEL

NAME = "noop"
VALUE = 0.5  # a box in 0..1, which the golden inference accepts


def publish_noop(like: Path, name: str, repository: Path) -> None:
    """Publishes `noop` into `repository`, shaped as the model `name` of the repository `like` (fp32)."""
    bundle, _ = load_bundle(like, name)
    hidden = _hidden_size(like / part_name(name, BOX_HEAD) / bundle.version / "model.onnx")
    sizes = {"S": bundle.image.size, "K": bundle.image_tokens, "D": hidden}
    with tempfile.TemporaryDirectory() as directory:
        parts = {}
        for step in kind_of(bundle).steps:
            folder = parts[step.suffix] = Path(directory, step.suffix)
            folder.mkdir()
            onnx.save(_graph(step, sizes), folder / "model.onnx")
        publish(
            repository, NAME, bundle, parts, like / name / bundle.version / TOKENIZER_FILE, dtype="fp32",
            has_scores=bundle.has_scores, sizes={"D": hidden}, max_batch_size=8,
        )  # fmt: skip


def _hidden_size(box_head: Path) -> int:
    graph = onnx.load(box_head, load_external_data=False).graph
    return int(graph.input[0].type.tensor_type.shape.dim[-1].dim_value)


def _graph(step: Step, sizes: dict[str, int]) -> onnx.ModelProto:
    """Each output is one value, expanded to its shape; of the inputs only the shapes are read."""
    nodes, constants = [], [numpy_helper.from_array(np.array([VALUE], np.float32), "value")]
    source = step.inputs[LANGUAGE_MODEL.inputs.index(_slots(step))] if step is LANGUAGE_MODEL else step.inputs[0]
    nodes.append(helper.make_node("Shape", [source.name], ["batch"], start=0, end=1))
    nodes.append(helper.make_node("Shape", [source.name], ["slots"], start=1, end=2))
    for output in step.outputs:
        pieces = ["batch"]
        for axis, (letter, dim) in enumerate(zip(output.shape, dims_of(output, sizes), strict=True)):
            if letter == "N":
                pieces.append("slots")
            else:
                constants.append(numpy_helper.from_array(np.array([dim]), f"{output.name}_{axis}"))
                pieces.append(f"{output.name}_{axis}")
        nodes.append(helper.make_node("Concat", pieces, [f"{output.name}_shape"], axis=0))
        nodes.append(helper.make_node("Expand", ["value", f"{output.name}_shape"], [output.name]))
    inputs, outputs = ([_declared(tensor, sizes) for tensor in tensors] for tensors in (step.inputs, step.outputs))
    graph = helper.make_graph(nodes, step.suffix, inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _slots(step: Step) -> Tensor:
    return next(tensor for tensor in step.inputs if tensor.shape == ("N",))


def _declared(tensor: Tensor, sizes: dict[str, int]) -> onnx.ValueInfoProto:
    kind = {"UINT8": onnx.TensorProto.UINT8, "INT64": onnx.TensorProto.INT64}.get(
        dtype_of(tensor, "fp32"), onnx.TensorProto.FLOAT
    )
    letters = zip(tensor.shape, dims_of(tensor, sizes), strict=True)
    return helper.make_tensor_value_info(
        tensor.name, kind, ["B", *(letter if dim < 0 else dim for letter, dim in letters)]
    )
