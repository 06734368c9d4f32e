"""The three parts of a grounding model, each a module with the tensors of the contract, and their ONNX export."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.export import Dim

from referent.core.bundle import ModelSpec
from referent.core.contract import BOX_HEAD, LANGUAGE_MODEL, VISION_ENCODER, Step, Tensor, dtype_of
from referent.core.packing import PADDING_SEGMENT, PREFIX_SEGMENT
from referent.modeling.grounding import GroundingModel

OPSET = 23  # native RMSNormalization, RotaryEmbedding and Attention; 24 loses the fused forms
EXTERNAL_DATA_BYTES = 1_500_000_000  # a protobuf cannot exceed 2 GB
DYNAMIC = {"B": Dim("batch", min=1, max=1024), "T": Dim("tokens", min=2, max=8192), "N": Dim("slots", min=1, max=1024)}


class VisionEncoder(nn.Module):
    """image -> image_features."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(image)


class LanguageModel(nn.Module):
    """input_ids, segment_ids, loc_positions, image_features -> hidden_states."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        loc_positions: torch.Tensor,
        image_features: torch.Tensor,
    ) -> torch.Tensor:
        return self.model.read_expressions(input_ids, segment_ids, loc_positions, image_features)[0]


class ScoredBoxes(nn.Module):
    """hidden_states -> boxes and, where the model has them, scores."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.box_head = model.box_head

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, logits = self.box_head(hidden_states)
        return (boxes,) if logits is None else (boxes, logits.sigmoid())


class Part(NamedTuple):
    """A step of the contract and the module that computes it."""

    step: Step
    module: nn.Module

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The step's outputs that this model has."""
        without_scores = isinstance(self.module, ScoredBoxes) and self.module.box_head.score is None
        return self.step.outputs[:1] if without_scores else self.step.outputs


def split(model: GroundingModel) -> tuple[Part, Part, Part]:
    """The parts of a model, sharing its weights."""
    return (
        Part(VISION_ENCODER, VisionEncoder(model)),
        Part(LANGUAGE_MODEL, LanguageModel(model)),
        Part(BOX_HEAD, ScoredBoxes(model)),
    )


Tensors = dict[str, torch.Tensor]


def example_inputs(
    model: GroundingModel, spec: ModelSpec, batch: int, tokens: int, slots: int, seed: int = 0
) -> Tensors:
    """Random but well-formed ensemble inputs: `slots` expressions share what is left of `tokens` after the prefix,
    with some padding at the end."""
    generator = torch.Generator().manual_seed(seed)
    size, prefix = spec.image.size, spec.image_tokens + 1
    vocabulary = model.base.config.text_config.vocab_size
    suffix = (tokens - prefix - 1) // slots
    input_ids = torch.randint(0, vocabulary, (batch, tokens), generator=generator)
    input_ids[input_ids == spec.prompt.image_token_id] = spec.prompt.pad_token_id
    input_ids[:, 1:prefix] = spec.prompt.image_token_id
    segment_ids = torch.full((batch, tokens), PADDING_SEGMENT)
    segment_ids[:, :prefix] = PREFIX_SEGMENT
    ends = prefix + suffix * torch.arange(1, slots + 1)
    for slot, end in enumerate(ends.tolist()):
        segment_ids[:, end - suffix : end] = slot + 1
    return {
        "image": torch.randint(0, 256, (batch, size, size, 3), generator=generator).to(torch.uint8),
        "input_ids": input_ids,
        "segment_ids": segment_ids,
        "loc_positions": (ends - 1).expand(batch, -1).contiguous(),
    }


@torch.inference_mode()
def run(parts: tuple[Part, ...], inputs: Tensors) -> Tensors:
    """Every tensor of the ensemble, computed by the modules one after another."""
    tensors = dict(inputs)
    for part in parts:
        results = part.module(*(tensors[tensor.name] for tensor in part.step.inputs))
        results = results if isinstance(results, tuple) else (results,)
        tensors |= {tensor.name: result for tensor, result in zip(part.outputs, results, strict=True)}
    return tensors


def export_onnx(parts: tuple[Part, ...], tensors: Tensors, dtype: str, directory: Path) -> Iterator[Path]:
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
        shapes = {tensor.name: _dynamic_axes(tensor) for tensor in part.step.inputs}
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
