"""Merge a LoRA adapter into its base, checked: the merged model must answer as base + adapter did."""

from peft import PeftModel

from export.parity import check, tolerances
from export.parts import Tensors, example_inputs, run, split
from referent.bundle import ModelSpec
from referent.modeling.grounding import GroundingModel


def merge(model: GroundingModel, spec: ModelSpec) -> GroundingModel:
    """The same model without adapter, in place; one without adapter is returned as it is. Raises `ParityError`."""
    if not isinstance(model.llava, PeftModel):
        return model
    inputs = example_inputs(model, spec, 2, *spec.buckets[-1])
    before = _outputs(model, inputs)
    model.llava = model.llava.merge_and_unload()
    check("merged adapter", before, _outputs(model, inputs), tolerances("fp32"))
    return model


def _outputs(model: GroundingModel, inputs: Tensors) -> Tensors:
    parts = split(model)
    tensors = run(parts, inputs)
    return {tensor.name: tensors[tensor.name].clone() for part in parts for tensor in part.outputs}
