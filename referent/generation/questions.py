"""Questions to a decoder, and the plan by which their answers share the rows of its cache."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, normalizers

from referent.core.contract import INPUT_IDS, SEGMENT_IDS
from referent.core.grammar import Generation, escape
from referent.core.kind import Arrays
from referent.core.packing import PREFIX_SEGMENT
from referent.core.spec import ModelSpec
from referent.generation.engine import DecoderRow, WrittenAnswer
from referent.kinds.generator import LABELS, MAX_INSTANCES, ROW_EXPRESSIONS, generation_of, texts_from_bytes

LABEL_TOKENS = 32  # where an answer repeats its label for each instance, longer ones have fewer instances
COLUMNS = 64  # a cache's rows are a multiple of so many tokens long


class QuestionError(ValueError):
    """A question cannot be answered by this model; the message says why."""


class GenerationQuestion(NamedTuple):
    """One image and its expressions."""

    prefix: Sequence[int]
    image_features: Any  # (1, K, D)
    suffixes: Sequence[Sequence[int]]  # of each expression
    labels: Sequence[str]
    max_instances: int | None = None
    deadline: float = math.inf  # of time.monotonic


def question_of(arrays: Arrays, image_features: Any, deadline: float = math.inf) -> GenerationQuestion:
    """The question from the inputs of one inference and the features of its image."""
    ids, segments = arrays[INPUT_IDS.name][0], arrays[SEGMENT_IDS.name][0]
    labels = texts_from_bytes(arrays[LABELS.name])
    suffixes = [ids[segments == number].tolist() for number in range(1, len(labels) + 1)]
    if not all(suffixes):
        raise QuestionError(f"{len(labels)} labels, but segment_ids has no tokens for some of them")
    prefix = ids[segments == PREFIX_SEGMENT].tolist()
    most = int(arrays[MAX_INSTANCES.name][0, 0]) or None
    return GenerationQuestion(prefix, image_features, suffixes, labels, most, deadline)


def plan(
    question: GenerationQuestion, tokenizer: LLTokenizer, generation: Generation, columns: int
) -> list[DecoderRow]:
    """The rows, of `columns` tokens, that answer a question. Expressions share a row if the model is causal and their
    answers are sure to fit. A single answer that would not fit gets fewer instances. Raises `QuestionError`."""
    grammar, prefix = generation.grammar, list(question.prefix)
    if not question.suffixes:
        raise QuestionError("the request has no expression")
    groups: list[tuple[list[int], list[WrittenAnswer]]] = []
    room = 0
    for suffix, label in zip(question.suffixes, question.labels, strict=True):
        label_tokens = 1 + len(tokenizer.tokenize_str(escape(label)))
        most = question.max_instances or generation.max_instances
        free = columns - len(prefix) - len(suffix)
        while most > 1 and grammar.tokens(label_tokens, most) > free:
            most -= 1
        need = grammar.tokens(label_tokens, most)
        if need > free:
            raise QuestionError(f"the expression {label[:40]!r} needs more than the {columns} tokens of a row")
        longer = ""
        if grammar.several and need + (tail := grammar.tail(label_tokens)) <= free:  # with a very long label it is not
            longer, need = grammar.lark(label, most + 1), need + tail
        if generation.bidirectional:
            groups.append(([*prefix, *suffix], [WrittenAnswer(tokenizer, grammar.lark(label, most), [], longer)]))
            continue
        if not groups or len(suffix) + need > room:
            groups.append((prefix, []))
            room = columns - len(prefix)
        groups[-1][1].append(WrittenAnswer(tokenizer, grammar.lark(label, most), suffix, longer))
        room -= len(suffix) + need
    return [DecoderRow(ids, question.image_features, answers, generation.bidirectional) for ids, answers in groups]


def load_tokenizer(tokenizer_json: str, vocabulary: int, eos_token_id: int) -> LLTokenizer:
    """A tokenizer for grammars, from the text of tokenizer.json; `vocabulary` is the width of the logits."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    if isinstance(tokenizer.normalizer, normalizers.Lowercase):  # a label is written as it is
        tokenizer.normalizer = None
    if tokenizer.decoder is None or isinstance(tokenizer.decoder, decoders.Metaspace):  # llguidance wants it in steps
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=eos_token_id)


def columns_of(spec: ModelSpec) -> int:
    """Tokens that a row needs for a bucket of up to `ROW_EXPRESSIONS` and its answers, unless labels are very long. The
    cache has so many columns for each slot, whatever a request needs. More expressions take several rows."""
    generation = generation_of(spec)
    grammar = generation.grammar
    answer = grammar.tokens(LABEL_TOKENS, generation.max_instances) + grammar.tail(LABEL_TOKENS)
    fitting = [bucket for bucket in spec.buckets if bucket.expressions <= ROW_EXPRESSIONS] or spec.buckets[:1]
    answers = (1 if generation.bidirectional else bucket.expressions for bucket in fitting)
    longest = max(bucket.tokens + count * answer for bucket, count in zip(fitting, answers, strict=True))
    return -(-longest // COLUMNS) * COLUMNS
