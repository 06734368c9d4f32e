"""Turns written answers into the output tensors of kind `generator`."""

from collections.abc import Sequence

import numpy as np

from referent.core.grammar import Grammar
from referent.core.kind import Arrays
from referent.generation.engine import DecoderRow
from referent.kinds.generator import (
    ANSWER_SCORES,
    BOXES,
    FINISH_REASONS,
    GENERATION_MS,
    MASS,
    OWNERS,
    PASSES,
    POINTS,
    PREFILL_MS,
    REASONS,
    SCORES,
    TEXTS,
    texts_to_bytes,
)


def outputs_of(rows: Sequence[DecoderRow], grammar: Grammar) -> Arrays:
    """The ensemble's outputs for the rows of one request, which are finished.

    An answer whose pass failed has neither text nor referents.
    """
    answers = [answer for row in rows for answer in row.answers]
    texts = ["" if answer.finish_reason == "error" else answer.text for answer in answers]
    found = [(index, written) for index, text in enumerate(texts) for written in grammar.read(text)]
    marks = POINTS if grammar.gives == "points" else BOXES
    width = int(marks.shape[1])
    prefill_s = sum(row.prefilled - row.began for row in rows)
    whole_s = max(row.ended for row in rows) - min(row.began for row in rows)
    return {
        TEXTS.name: texts_to_bytes(texts),
        marks.name: np.array([written.values for _, written in found], np.float32).reshape(1, -1, width),
        OWNERS.name: np.array([[index for index, _ in found]], np.int32),
        SCORES.name: np.array([[answers[index].score(written.span) for index, written in found]], np.float32),
        ANSWER_SCORES.name: np.array([[answer.score() for answer in answers]], np.float32),
        MASS.name: np.array([[answer.mass for answer in answers]], np.float32),
        FINISH_REASONS.name: np.array(
            [[REASONS.index(answer.finish_reason or "error") for answer in answers]], np.int32
        ),
        PASSES.name: np.array([[max(row.passes for row in rows)]], np.int32),
        PREFILL_MS.name: np.array([[1000 * prefill_s]], np.float32),
        GENERATION_MS.name: np.array([[1000 * (whole_s - prefill_s)]], np.float32),
    }
