"""Integers throughout, for small models on CPUs: weights of seven bits, activations of eight.

The ranges of activations come from pictures of the training data, so an answer does not depend on what is batched with
it. Weights have seven bits, since a processor without VNNI adds pairs of products in 16 bits: with eight they overflow.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from export.parity import ParityError
from referent.core.contract import Step
from referent.core.files import atomic
from referent.core.kind import Arrays
from referent.core.processor import Processor
from referent.data.records import Record, read_records

OPERATORS = ["Conv", "MatMul", "Gemm"]  # attention and norms stay floats
PICTURES, CHECKED = 48, 16  # that ranges are taken from, and that the result is checked with
MEAN_TOLERANCE = 2e-2  # of the range of the output that is judged


class CalibrationError(RuntimeError):
    """A model or its data can't be quantized; the message is one line with the remedy."""


def requests(records: Path, images: Path, processor: Processor) -> list[Arrays]:
    """Tensors of the first pictures, each with its expressions. Raises `CalibrationError`, and errors of reading."""
    least, asked = PICTURES + CHECKED, dict[str, list[str]]()
    for item in read_records(records):
        if isinstance(item, Record):
            asked.setdefault(item.image, []).append(item.expression)
    if len(asked) < least:
        raise CalibrationError(f"{records} has {len(asked)} pictures: give records with at least {least}")
    return [
        processor.prepare((images / image).read_bytes(), expressions).inferences[0]
        for image, expressions in list(asked.items())[:least]
    ]


def quantize_throughout(
    files: Sequence[Path], steps: Sequence[Step], large: frozenset[str], judged: str, given: Sequence[Arrays]
) -> float:
    """Replaces the graphs of the steps `large`. Returns the mean change of the output `judged`, on pictures that were
    not used for ranges. Raises `CalibrationError`, and `ParityError` if the change is too large."""
    for file in files:
        if (beside := [path.name for path in file.parent.iterdir() if path != file]) and file.parent.name in large:
            raise CalibrationError(f"{file.parent.name} has weights in {beside[0]}: --weights int8 is for such a size")
    exact = answers(files, steps, given)
    for file, step in zip(files, steps, strict=True):
        if step.suffix in large:
            feeds = [{tensor.name: tensors[tensor.name] for tensor in step.inputs} for tensors in exact[:PICTURES]]
            with atomic(file) as new:
                quantize_static(
                    file, new, _Feeds(feeds), per_channel=True, reduce_range=True, op_types_to_quantize=OPERATORS,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    extra_options={"MatMulConstBOnly": True},
                )  # fmt: skip
    found = [tensors[judged] for tensors in answers(files, steps, given[PICTURES:])]
    expected = [tensors[judged] for tensors in exact[PICTURES:]]
    difference, other = (_mean_difference(found, each) for each in (expected, expected[1:] + expected[:1]))
    if not difference <= MEAN_TOLERANCE < other:
        raise ParityError(
            f"integers change {judged} by {difference:.1e} on average, and another picture by {other:.1e}; "
            f"{MEAN_TOLERANCE:.0e} must lie between them"
        )
    return difference


def answers(files: Sequence[Path], steps: Sequence[Step], given: Sequence[Arrays]) -> list[Arrays]:
    """All tensors of each request."""
    found = [dict(arrays) for arrays in given]
    for file, step in zip(files, steps, strict=True):
        session = onnxruntime.InferenceSession(file)
        names = [node.name for node in session.get_outputs()]
        for tensors in found:
            outputs = session.run(names, {tensor.name: tensors[tensor.name] for tensor in step.inputs})
            tensors |= dict(zip(names, outputs, strict=True))
    return found


def _mean_difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    first = [(a[0, 0], b[0, 0]) for a, b in zip(found, expected, strict=True)]  # every request has one expression
    return float(np.mean([np.abs(a - b).mean() for a, b in first]))


class _Feeds(CalibrationDataReader):
    """Feeds requests to ONNX Runtime's quantizer, one by one."""

    def __init__(self, feeds: Sequence[Arrays]) -> None:
        self._left: Iterator[Arrays] = iter(feeds)

    def get_next(self) -> Arrays | None:
        return next(self._left, None)
