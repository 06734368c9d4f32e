"""Writes answers in text under a grammar: many rows at once, each with one or more expressions of its image.

A *row* is a slot of the decoder's cache: a prefix (text and image), computed once, and *answers*, each of which sees
the prefix and itself. Rows join and leave between two passes. Tokens that the grammar forces need no pass: a pass feeds
each answer's last decision and everything forced after it, and only asks for its next decision.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from referent.core.answers import FinishReason
from referent.core.boxes import Bools, Floats

HOLE, PREFIX = -1, 0  # owners of a column of the cache; answers are 1..N

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


class Pass(NamedTuple):
    """The inputs of one pass over B rows, T new tokens each; P columns are the past (0: a prefill)."""

    input_ids: Ints  # (B, T)
    image_features: Any | None  # (1, K, D) of a prefill, an array or what the decoder's device holds
    position_ids: Ints  # (B, T)
    mask: Bools  # (B, T, P + T): what each new token sees
    select: Ints  # (B, N): places in T whose next token is wanted
    allowed: Bits  # (B, N, V / 8 rounded up): a bit a token, the least significant first
    slots: range  # of the cache, one a row
    starts: Sequence[int]  # columns where the new keys and values belong
    counts: Sequence[int]  # how many of the T tokens of a row are no padding


class Decisions(NamedTuple):
    """For each selected place the best allowed token, its log-probability among the allowed, and the log of what the
    model itself gives to all that are allowed; (B, N) each."""

    token: Ints
    logprob: Floats
    mass: Floats


class Decoder(Protocol):
    """A language model and its cache of `slots` rows with `columns` places each."""

    slots: int
    columns: int
    vocabulary: int

    def run(self, inputs: Pass) -> Decisions:
        """Computes a pass and stores its new keys and values. A pass that raises leaves the cache as it was."""

    def move(self, source: int, target: int, columns: int) -> None:
        """Copies the first columns of a slot to another."""


class Decision(NamedTuple):
    """One token that the model chose."""

    at: int  # index in the answer's ids
    logprob: float
    mass: float


class Ask(NamedTuple):
    """A question to a pass, the best of the allowed tokens after a place, and the function that takes the answer."""

    place: int  # among the tokens that the row feeds
    allowed: Bits  # at least V / 8 bytes
    take: Callable[[int, float, float], None]  # its token, logprob and mass, as in `Decisions`


class Doubt(NamedTuple):
    """A place where the limit on instances forbids tokens that would otherwise be allowed."""

    fed: int  # so many of the pending tokens stand before it
    wished: Bits  # what would be allowed with one instance more
    fits: Callable[[int], bool]  # whether the limit leaves a token


class WrittenAnswer:
    """One expression's answer as it is written.

    `longer` is the grammar with one more instance, if the answer is a list. With it, `finish_reason` is `length` if the
    model would have written more than the limit allows, and `stop` if it ended by itself.
    Raises ValueError for a grammar that llguidance refuses.
    """

    def __init__(self, tokenizer: LLTokenizer, lark: str, suffix: Sequence[int], longer: str = "") -> None:
        self._tokenizer, self._matcher = tokenizer, _compiled(tokenizer, lark).deep_copy()
        self._longer = _compiled(tokenizer, longer).deep_copy() if longer else None
        self._doubt: Doubt | None = None
        self.pending = list(suffix)  # tokens that no pass has fed yet
        self.position = 0  # of the first of them
        self.ids: list[int] = []
        self.decisions: list[Decision] = []
        self.finish_reason: FinishReason | Literal[""] = ""
        self._ended: FinishReason = "stop"  # why it ends, once it does
        self._force()

    def asks(self, first: int) -> list[Ask]:
        """The questions to the next pass; `first` is the place of the first pending token."""
        asked = []
        if self._doubt:
            asked.append(Ask(first + self._doubt.fed - 1, self._doubt.wished, self._judge))
        if not self._matcher.is_stopped():
            asked.append(Ask(first + len(self.pending) - 1, _bits(self._matcher), self._decide))
        return asked

    def _judge(self, token: int, logprob: float, mass: float) -> None:
        """Takes what the model would write without the limit; it is not a decision, and does not count for scores."""
        if self._doubt and not self._doubt.fits(token):
            self._ended, self._longer = "length", None
        self._doubt = None
        self._end()

    def _decide(self, token: int, logprob: float, mass: float) -> None:
        """Takes the model's choice; `pending` is then what the next pass must feed."""
        self.position += len(self.pending)
        self.pending = [token]
        self.decisions.append(Decision(len(self.ids), logprob, mass))
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            self.finish_reason = "error"
            return
        if self._longer:
            self._longer.consume_token(token)
        if token not in self._tokenizer.eos_tokens:
            self.ids.append(token)
        self._force()

    def _force(self) -> None:
        fed, forced = len(self.pending), self._matcher.compute_ff_tokens()
        self._matcher.consume_tokens(forced)
        self.pending += forced
        self.ids += [token for token in forced if token not in self._tokenizer.eos_tokens]
        if self._longer:
            self._doubt = self._compare(self._longer, forced, fed)
        if self._doubt and self._matcher.is_stopped():
            del self.pending[self._doubt.fed :]  # what is forced behind it needs no pass
        self._end()

    def _end(self) -> None:
        if self._matcher.is_stopped() and not self._doubt:
            self.finish_reason = self._ended

    def _compare(self, longer: LLMatcher, forced: list[int], fed: int) -> Doubt | None:
        """Advances the longer grammar by the forced tokens, after `fed` pending ones; finds where it allows more."""
        free, stopped = longer.compute_ff_tokens(), self._matcher.is_stopped()
        same = next((i for i, pair in enumerate(zip(forced, free, strict=False)) if pair[0] != pair[1]), len(free))
        same = min(same, len(forced))
        longer.consume_tokens(forced[:same])
        wished, rest = _bits(longer), b"".join(map(self._bytes, forced[same:]))
        longer.consume_tokens(forced[same:])
        held = _bits(self._matcher)

        def fits(token: int) -> bool:
            if not rest and not stopped:  # a decision there, too
                return _has(held, token)
            text = self._bytes(token)
            # other tokens for the same text are no other wish
            return (
                token in self._tokenizer.eos_tokens or rest.startswith(text) or (not stopped and text.startswith(rest))
            )

        more = wished if rest else wished & ~held
        return Doubt(fed + same, wished, fits) if not all(map(fits, _tokens(more))) else None

    @property
    def text(self) -> str:
        """The text so far, with special tokens by their names."""
        return b"".join(map(self._bytes, self.ids)).decode(errors="replace")

    @property
    def mass(self) -> float:
        """Mean over the decisions of the log of what the model itself gave to the allowed tokens."""
        return float(np.mean([decision.mass for decision in self.decisions])) if self.decisions else 0.0

    def score(self, span: tuple[int, int] | None = None) -> float:
        """Geometric mean of the probabilities, among the allowed, of the decisions that overlap bytes of the finished
        text; of all decisions, the end's too, without a span."""
        chosen = [d.logprob for d in self.decisions if span is None or self._overlaps(d.at, span)]
        return math.exp(float(np.mean(chosen))) if chosen else 1.0

    def _overlaps(self, index: int, span: tuple[int, int]) -> bool:
        start, stop = self._edges[index : index + 2].tolist() if index < len(self.ids) else (math.inf, math.inf)
        return start < span[1] and stop > span[0]

    @cached_property
    def _edges(self) -> Ints:
        """(ids + 1,) the bytes at which the tokens start, and where the last one ends."""
        return np.cumsum([0, *(len(self._bytes(token)) for token in self.ids)])

    def _bytes(self, token: int) -> bytes:
        return bytes(self._tokenizer.decode_bytes([token]))


def _bits(matcher: LLMatcher) -> Bits:
    """The tokens that may follow, a bit for each."""
    return np.frombuffer(matcher.compute_bitmask(), np.uint8)


def _tokens(bits: Bits) -> list[int]:
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() if bits.any() else []


def _has(bits: Bits, token: int) -> bool:
    return bool(bits[token // 8] >> token % 8 & 1)


@lru_cache(maxsize=256)  # a box's grammar is the same for every label, a common label's is met again
def _compiled(tokenizer: LLTokenizer, lark: str) -> LLMatcher:
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark))
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher


@dataclass(eq=False)
class DecoderRow:
    """One image with one or more answers; only one if `bidirectional`, where prompt tokens attend to later ones."""

    prefix: Sequence[int]
    image_features: Any  # (1, K, D)
    answers: Sequence[WrittenAnswer]
    bidirectional: bool = False
    deadline: float = math.inf  # of time.monotonic
    job: Any = None  # whose it is
    slot: int = -1
    used: int = 0
    passes: int = 0
    began: float = 0  # of time.perf_counter: when it got its slot, when its prefill was over, and when it left
    prefilled: float = 0
    ended: float = 0
    owners: npt.NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))

    @property
    def writing(self) -> list[tuple[int, WrittenAnswer]]:
        """The unfinished answers with their numbers, from 1."""
        return [(number, answer) for number, answer in enumerate(self.answers, 1) if not answer.finish_reason]


class Chunk(NamedTuple):
    """The tokens that one row feeds in a pass."""

    row: DecoderRow
    tokens: list[int]
    owners: npt.NDArray[np.int16]
    positions: list[int]
    asks: list[Ask]


class Engine:
    """Continuous batching over a decoder's slots; one thread at a time."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.active: list[DecoderRow] = []  # the row at index i has slot i
        self.passes = 0
        self.tokens = 0  # fed
        self.errors: list[Exception] = []  # of passes that failed, until somebody takes them

    @property
    def full(self) -> bool:
        """Whether every slot has a row."""
        return len(self.active) == self._decoder.slots

    def admit(self, row: DecoderRow) -> None:
        """Prefills a row, alone: arithmetic bounds a prefill, so a batch would not make it cheaper."""
        columns, row.began = self._decoder.columns, time.perf_counter()
        row.slot, row.used, row.owners = len(self.active), 0, np.full(columns, HOLE, np.int16)
        self.active.append(row)
        prefix = len(row.prefix)
        for answer in row.answers:
            answer.position = prefix
        chunk = self._chunk(row, list(row.prefix))
        if len(chunk.tokens) > columns:
            self._release(row)
            raise ValueError(f"the prompt has {len(chunk.tokens)} tokens; at most {columns} are possible")
        if chunk.asks:
            self._run([chunk], 0, prefix if row.bidirectional else 0)
        row.prefilled = time.perf_counter()

    def step(self) -> list[DecoderRow]:
        """One pass for all rows that are being written; removes and returns those that are finished."""
        finished = self._finished()
        if self.active:
            self._run([self._chunk(row) for row in self.active], self._decoder.columns)
            finished += self._finished()
        return finished

    def _finished(self) -> list[DecoderRow]:
        for row in self.active:
            for _, answer in row.writing:  # one after the other, until the rest fits
                if row.used + sum(len(a.pending) for _, a in row.writing) > self._decoder.columns:
                    answer.finish_reason = "length"
        finished = [row for row in self.active if not row.writing]
        for row in finished:
            self._release(row)
        return finished

    def drop(self, row: DecoderRow) -> None:
        """Takes a row out before it is finished."""
        self._release(row)

    def abandon(self) -> None:
        """Takes all rows out without asking anything of the decoder."""
        self.active.clear()

    def _chunk(self, row: DecoderRow, prefix: Sequence[int] = ()) -> Chunk:
        tokens, owners, positions = list(prefix), [PREFIX] * len(prefix), list(range(len(prefix)))
        asks: list[Ask] = []
        for number, answer in row.writing:
            count = len(answer.pending)
            asks += answer.asks(len(tokens))
            tokens += answer.pending
            owners += [number] * count
            positions += range(answer.position, answer.position + count)
        return Chunk(row, tokens, np.array(owners, np.int16), positions, asks)

    def _run(self, chunks: Sequence[Chunk], past: int, bidirectional: int = 0) -> None:
        """A pass. If it fails, each row is run alone, and the rows that fail again get the error."""
        try:
            decisions = self._decoder.run(self._inputs(chunks, past, bidirectional))
        except Exception as error:
            if len(chunks) > 1:
                for chunk in chunks:
                    self._run([chunk], past)
                return
            self.errors.append(error)
            for _, answer in chunks[0].row.writing:
                answer.finish_reason = "error"
            return
        self.passes += 1
        for b, chunk in enumerate(chunks):
            row, count = chunk.row, len(chunk.tokens)
            self.tokens += count
            row.owners[row.used : row.used + count] = chunk.owners
            row.used += count
            row.passes += 1
            for n, ask in enumerate(chunk.asks):
                ask.take(*(values[b, n].item() for values in decisions))

    def _inputs(self, chunks: Sequence[Chunk], past: int, bidirectional: int) -> Pass:
        batch, wide, many = len(chunks), max(len(c.tokens) for c in chunks), max(len(c.asks) for c in chunks)
        ids, positions = np.zeros((2, batch, wide), np.int64)
        select = np.zeros((batch, many), np.int64)
        width = -(-self._decoder.vocabulary // 8)
        allowed = np.full((batch, many, width), 0xFF, np.uint8)  # places of padding: anything
        mask = np.zeros((batch, wide, past + wide), np.bool_)
        for b, chunk in enumerate(chunks):
            count, owners = len(chunk.tokens), chunk.owners
            ids[b, :count], positions[b, :count] = chunk.tokens, chunk.positions
            for n, ask in enumerate(chunk.asks):
                select[b, n], allowed[b, n] = ask.place, ask.allowed[:width]
            if past:
                mask[b, :count, :past] = (chunk.row.owners == PREFIX) | (chunk.row.owners == owners[:, None])
            own = (owners == PREFIX) | (owners == owners[:, None])
            mask[b, :count, past : past + count] = own & np.tri(count, dtype=np.bool_)
            mask[b, :bidirectional, past : past + bidirectional] = True
            padding = np.arange(count, wide)
            mask[b, padding, past + padding] = True  # sees itself: a row that sees nothing would be NaN
        rows = [chunk.row for chunk in chunks]
        features = None if past else rows[0].image_features
        slots = range(rows[0].slot, rows[0].slot + batch)
        return Pass(
            ids, features, positions, mask, select, allowed, slots, [r.used for r in rows],
            [len(chunk.tokens) for chunk in chunks],
        )  # fmt: skip

    def _release(self, row: DecoderRow) -> None:
        """Keeps the active rows together: the last one moves into the gap."""
        row.ended = time.perf_counter()
        last = self.active.pop()
        if last is not row:
            self._decoder.move(last.slot, row.slot, last.used)
            last.slot = row.slot
            self.active[row.slot] = last
