"""Packing: several expressions of one image in one row, padded to a bucket so that rows can be batched.

A row is the shared prefix (segment 0), each expression's suffix (segments 1..N) and padding (segment -1). A token sees
earlier tokens of segment 0 and of its own segment only, so a packed expression gets the box it would get alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from referent.core.prompts import ExpressionError

PREFIX_SEGMENT, PADDING_SEGMENT = 0, -1


class Bucket(NamedTuple):
    """A row shape: `tokens` ids (T) and `expressions` slots (N)."""

    tokens: int
    expressions: int


@dataclass(frozen=True)
class PackedRow:
    """The text tensors of one row, and how many of its N slots are in use."""

    input_ids: npt.NDArray[np.int64]  # (T,)
    segment_ids: npt.NDArray[np.int64]  # (T,)
    loc_positions: npt.NDArray[np.int64]  # (N,), unused slots 0
    expressions: int


def pack(
    prefix: Sequence[int], suffixes: Sequence[Sequence[int]], buckets: Sequence[Bucket], pad_token_id: int
) -> list[PackedRow]:
    """Fill rows with suffixes in order, each row in the smallest bucket that holds it.

    Raises `ExpressionError` for a suffix that fits no bucket even alone.
    """
    largest = Bucket(max(b.tokens for b in buckets), max(b.expressions for b in buckets))
    groups: list[list[Sequence[int]]] = []
    tokens = 0
    for suffix in suffixes:
        if len(prefix) + len(suffix) > largest.tokens:
            raise ExpressionError(
                f"the expression is {len(suffix)} tokens long with its prompt; "
                f"the limit is {largest.tokens - len(prefix)}: shorten it"
            )
        if not groups or tokens + len(suffix) > largest.tokens or len(groups[-1]) == largest.expressions:
            groups.append([])
            tokens = len(prefix)
        groups[-1].append(suffix)
        tokens += len(suffix)
    return [_row(prefix, group, buckets, pad_token_id) for group in groups]


def _row(
    prefix: Sequence[int], suffixes: Sequence[Sequence[int]], buckets: Sequence[Bucket], pad_token_id: int
) -> PackedRow:
    ends = len(prefix) + np.cumsum([len(suffix) for suffix in suffixes])
    used = int(ends[-1])
    bucket = min(b for b in buckets if b.tokens >= used and b.expressions >= len(suffixes))
    input_ids = np.full(bucket.tokens, pad_token_id, np.int64)
    segment_ids = np.full(bucket.tokens, PADDING_SEGMENT, np.int64)
    loc_positions = np.zeros(bucket.expressions, np.int64)
    input_ids[:used] = np.concatenate([prefix, *suffixes])
    segment_ids[:used] = np.repeat(np.arange(len(suffixes) + 1), [len(prefix), *map(len, suffixes)])
    loc_positions[: len(suffixes)] = ends - 1
    return PackedRow(input_ids, segment_ids, loc_positions, len(suffixes))
