"""A checkpoint to train on, rebuilt from a published model: python -m export.restore mini --out CHECKPOINT

For models of mini's shape, of kind head or referents. Most weights have their names in the graphs. The order of
products and convolutions tells which the others are. Older exporters folded each batch norm into the convolution before
it. At the end the checkpoint must answer as the graphs do.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from export.graphs import Part, Tensors, run
from export.parity import ParityError, reference, tolerances, trials, verify
from export.parts import parts_of
from export.quantize import HALF
from referent.core.bundle import TOKENIZER_FILE, BundleError, load_bundle
from referent.core.contract import part_name
from referent.core.spec import ModelSpec
from referent.kinds import kind_of
from referent.mini.shape import mini_config
from referent.modeling.checkpoint import (
    BASE_DIRECTORY,
    CheckpointError,
    CheckpointSpec,
    make_head,
    make_model,
    new_checkpoint,
    save_checkpoint,
)
from referent.modeling.grounding import GroundingModel
from referent.modeling.stem import ConvStemLlava

PRODUCTS, NORM = ("MatMul", "Gemm", "Conv"), "BatchNormalization"
ROWS = "lm_head.weight"  # one for each token of the vocabulary; tied to the embeddings


def restore(repository: Path, name: str, out: Path, version: str | None = None) -> CheckpointSpec:
    """Write the checkpoint `out` of a published version (default: the latest); nothing is written where that fails.

    Raises `BundleError`, `CheckpointError` where the model is of another shape, and `ParityError`.
    """
    bundle, digest = load_bundle(repository, name, version)
    steps = kind_of(bundle).steps
    files = [repository / part / str(bundle.parts[part]) / "model.onnx" for part in (part_name(name, s) for s in steps)]
    spec = CheckpointSpec(
        **{field: getattr(bundle, field) for field in ModelSpec.model_fields} | {"training": {"restored": digest}},
        base=BASE_DIRECTORY, has_scores=bundle.has_scores, head_dropout=0.0,
    )  # fmt: skip
    graphs = [ir.load(file).graph for file in files]
    model = _of_shape(spec, graphs)
    parts = parts_of(spec)
    cases = trials(spec, quick=True)
    inputs = parts.example_inputs(model, spec, *cases[0])
    with torch.inference_mode():
        for part, graph in zip(parts.split(model), graphs, strict=True):
            _fill(part, graph, inputs)
            inputs |= run([part], inputs)
    verify(files, reference(model, spec, cases), tolerances("fp32", parts), parts, mapped=False)
    with new_checkpoint(out) as directory:
        save_checkpoint(directory, model, spec, repository / name / bundle.version / TOKENIZER_FILE)
    return spec


def _of_shape(spec: CheckpointSpec, graphs: Sequence[ir.Graph]) -> GroundingModel:
    """A model with random weights for these graphs. Raises `CheckpointError`."""
    if spec.kind == "generator":
        raise CheckpointError("a generator's graph keeps no weights under their names: restore a head or referents")
    config = mini_config()
    named = [(_plain(key), value) for graph in graphs for key, value in graph.initializers.items()]
    rows = next((value for key, value in named if key.endswith(ROWS)), None)
    if rows is None or rows.shape is None or not isinstance(vocabulary := rows.shape[0], int):
        raise CheckpointError(f"no graph has {ROWS}: only models that this project trained from nothing are restored")
    config.text_config.vocab_size = vocabulary
    return make_model(ConvStemLlava(config), make_head(spec, config.text_config.hidden_size)).eval()


def _fill(part: Part, graph: ir.Graph, inputs: Tensors) -> None:
    """Gives the modules of a part the weights of its graph. Raises `CheckpointError`."""
    layers = _layers(part, inputs)
    nodes = [node for node in graph if node.op_type in (*PRODUCTS, NORM) and _constants(node)]
    found = sum(node.op_type in PRODUCTS for node in nodes)
    expected = sum(not isinstance(layer, nn.BatchNorm2d) for layer in layers)
    if found != expected:
        raise CheckpointError(f"{part.step.suffix} has {found} products, a model of mini's shape {expected}")
    state = part.module.state_dict(keep_vars=True)
    for key, value in graph.initializers.items():
        own, constant = state.get(_plain(key)), _constant(value)
        if own is not None and constant is not None:
            _set(key, own, constant)
    before: list[torch.Tensor] = []  # constants of the node before
    for layer in layers:
        if not isinstance(layer, nn.BatchNorm2d):
            node = nodes.pop(0)
            weight, *_ = before = _constants(node)
            _set(node.op_type, layer.weight, weight.T if node.op_type == "MatMul" else weight)
        elif nodes and nodes[0].op_type == NORM:
            own = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            for tensor, constant in zip(own, _constants(nodes.pop(0)), strict=True):
                _set(NORM, tensor, constant)
        else:  # all that it does is in the convolution before it
            layer.running_var.fill_(1 - layer.eps)
            _set(NORM, layer.bias, before[1])
    class_token = next((own for key, own in state.items() if key.endswith("class_embedding")), None)
    broadcast = [value for key, value in graph.initializers.items() if key.startswith("expand")]
    if class_token is not None and len(broadcast) == 1 and (constant := _constant(broadcast[0])) is not None:
        _set("class_embedding", class_token, constant.flatten())


def _layers(part: Part, inputs: Mapping[str, torch.Tensor]) -> list[nn.Module]:
    """Linear layers, convolutions and batch norms of a part, in the order in which it calls them."""
    called: list[nn.Module] = []
    kinds = (nn.Linear, nn.Conv2d, nn.BatchNorm2d)
    hooks = [
        module.register_forward_hook(lambda module, *_: called.append(module))
        for module in part.module.modules()
        if isinstance(module, kinds)
    ]
    run([part], inputs)
    for hook in hooks:
        hook.remove()
    return called


def _plain(name: str) -> str:
    """The name that a weight has where it is not stored in half."""
    return name.removesuffix(f".{HALF}")


def _constants(node: ir.Node) -> list[torch.Tensor]:
    """Of a node's inputs behind the first."""
    return [constant for value in node.inputs[1:] if (constant := _constant(value)) is not None]


def _constant(value: ir.Value | None) -> torch.Tensor | None:
    """fp32; weights that are stored in half are cast by the graph."""
    if value is not None and (node := value.producer()) is not None and node.op_type == "Cast":
        value = node.inputs[0]
    if value is None or value.const_value is None:
        return None
    return torch.from_numpy(value.const_value.numpy().astype(np.float32))


def _set(what: str, own: torch.Tensor, found: torch.Tensor) -> None:
    if own.shape != found.shape:
        raise CheckpointError(f"{what} is {tuple(found.shape)}, in a model of mini's shape {tuple(own.shape)}")
    own.copy_(found)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.restore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the published model")
    parser.add_argument("--from", dest="repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--version", help="default: the latest")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    arguments = parser.parse_args(given)
    try:
        spec = restore(arguments.repository, arguments.name, arguments.out, arguments.version)
    except (BundleError, CheckpointError, ParityError, OSError) as error:
        sys.exit(str(error))
    print(f"{arguments.out}: {spec.training['restored']}, trainable")


if __name__ == "__main__":
    main()
