"""Shared by kinds whose head reads the hidden state at each expression's [LOC]: all expressions in one pass."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from referent.core.answers import Gives
from referent.core.contract import IMAGE, INPUT_IDS, LOC_POSITIONS, SEGMENT_IDS, Tensor
from referent.core.kind import Arrays, Kind, Options
from referent.core.packing import pack
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec

HIDDEN_STATES = Tensor("hidden_states", None, ("N", "D"))


class AtLoc(Kind):
    """Expressions of an image share a row; each ends in a [LOC] of its own."""

    inputs = (IMAGE, INPUT_IDS, SEGMENT_IDS, LOC_POSITIONS)

    def gives(self, spec: ModelSpec) -> Gives:
        return "boxes"

    def inferences(
        self,
        spec: ModelSpec,
        encoder: PromptEncoder,
        image: npt.NDArray[np.uint8],
        expressions: Sequence[str],
        options: Options,
    ) -> list[Arrays]:
        suffixes = [encoder.suffix(expression) for expression in expressions]
        return [
            {
                IMAGE.name: image[None],
                INPUT_IDS.name: row.input_ids[None],
                SEGMENT_IDS.name: row.segment_ids[None],
                LOC_POSITIONS.name: row.loc_positions[None],
            }
            for row in pack(encoder.prefix, suffixes, spec.buckets, spec.prompt.pad_token_id)
        ]

    def warm_ups(self, spec: ModelSpec) -> dict[str, dict[str, int]]:
        return {f"{b.tokens} tokens": {"T": b.tokens, "N": b.expressions} for b in spec.buckets}


def joined(inferences: Sequence[Arrays], outputs: Sequence[Arrays], tensor: Tensor) -> npt.NDArray[np.float64]:
    """An output of all inferences of a request, without unused slots: a row an expression."""
    used = [np.count_nonzero(inference[LOC_POSITIONS.name]) for inference in inferences]
    return np.concatenate([arrays[tensor.name][0, :n] for arrays, n in zip(outputs, used, strict=True)])
