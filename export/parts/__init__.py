"""How a model of each kind is split for export: a module for each kind."""

from pathlib import Path
from typing import Protocol

from export.graphs import Part, Tensors
from export.parts import generator, head, referents
from referent.core.packing import Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.modeling.checkpoint import CheckpointError
from referent.modeling.grounding import GroundingModel


class KindParts(Protocol):
    """What a module must have. `RANGES` are the ranges of outputs, where known; `JUDGED` is the output that is compared
    if weights are rounded; `RANKED` are outputs with slots whose order or content a tie may change; `LARGE` are the
    steps whose weights are worth rounding."""

    RANGES: dict[str, float]
    JUDGED: str
    RANKED: frozenset[str]
    LARGE: frozenset[str]

    def split(self, model: GroundingModel) -> tuple[Part, ...]:
        """The parts, sharing the model's weights."""

    def example_inputs(
        self, model: GroundingModel, spec: ModelSpec, batch: int, bucket: Bucket, seed: int = 0
    ) -> Tensors:
        """Random but well-formed inputs of the ensemble."""

    def add_files(self, directory: Path, spec: ModelSpec, encoder: PromptEncoder, max_batch_size: int) -> None:
        """Writes what the folders of the steps, <directory>/<step>, hold beside the graphs."""


PARTS: dict[str, KindParts] = {"head": head, "referents": referents, "generator": generator}


def parts_of(spec: ModelSpec) -> KindParts:
    """Raises `referent.modeling.checkpoint.CheckpointError` for a kind that is not exported."""
    if spec.kind not in PARTS:
        raise CheckpointError(f"models of kind {spec.kind!r} are not exported; these are: {', '.join(PARTS)}")
    return PARTS[spec.kind]
