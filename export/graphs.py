"""Parts of a model as modules with the tensors of the contract, and their ONNX export."""

from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.export import Dim

from referent.core.contract import Step, Tensor, dtype_of

OPSET = 23  # native RMSNormalization, RotaryEmbedding and Attention; 24 loses the fused forms
EXTERNAL_DATA_BYTES = 1_500_000_000  # a protobuf cannot exceed 2 GB
DYNAMIC = {
    "B": Dim("batch", min=1, max=1024), "T": Dim("tokens", min=2, max=8192), "N": Dim("slots", min=1, max=1024),
    "P": Dim.DYNAMIC, "C": Dim.DYNAMIC, "F": Dim.DYNAMIC,
}  # fmt: skip


Tensors = dict[str, torch.Tensor]


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


def export_onnx(parts: Sequence[Part], tensors: Tensors, dtype: str, directory: Path) -> Iterator[Path]:
    """Write <directory>/<step>/model.onnx for every part, yielding each; weights go beside it where they are large.

    `tensors` are an example of each tensor of the ensemble, fp32 where they are floats.
    """
    examples = {
        tensor.name: tensors[tensor.name].half() if dtype_of(tensor, dtype) == "FP16" else tensors[tensor.name]
        for part in parts
        for tensor in part.step.inputs
    }
    for part in parts:
        file = directory / part.step.suffix / "model.onnx"
        file.parent.mkdir(parents=True)
        arguments = tuple(examples[tensor.name] for tensor in part.step.inputs)
        axes = [_dynamic_axes(tensor) for tensor in part.step.inputs]
        named = sum(p.kind is not p.VAR_POSITIONAL for p in signature(part.module.forward).parameters.values())
        shapes = (*axes[:named], *([tuple(axes[named:])] if axes[named:] else []))
        program = torch.onnx.export(
            part.module.eval(), arguments, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes,
            input_names=[tensor.name for tensor in part.step.inputs],
            output_names=[tensor.name for tensor in part.outputs], verbose=False,
        )  # fmt: skip
        assert program is not None  # only with dynamo=False, or when a file is given
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces with the paths of the machine that exported
        weights = sum(p.numel() * p.element_size() for p in part.module.parameters())
        program.save(str(file), external_data=weights > EXTERNAL_DATA_BYTES)
        yield file


def _dynamic_axes(tensor: Tensor) -> dict[int, Dim]:
    return {axis: DYNAMIC[letter] for axis, letter in enumerate(("B", *tensor.shape)) if letter in DYNAMIC}
