"""The writer under load and with failures, over a decoder to which all tokens are equally likely."""

import math
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Event, Thread

import numpy as np
import pytest

from referent.core.grammar import BoxGrammar, BoxOrPointsGrammar, DetectionGrammar, Generation, Grammar, PointGrammar
from referent.generation.engine import Decisions, DecoderRow, Pass, WrittenAnswer
from referent.generation.questions import GenerationQuestion, QuestionError
from referent.generation.writer import LateError, RefusedError, Writer, WriterLoad
from tests.support.hostile_labels import HOSTILE_LABELS
from tests.support.text_tokenizer import EOS_ID, FIRST_LOC_ID, TEXT_VOCABULARY, text_tokenizer

ANSWERS = int(os.environ.get("REFERENT_ANSWERS", "200"))  # of each grammar
FEATURES = np.zeros((1, 4, 8), np.float32)
PROMPT = [1, 2, 4, 4, 4, 4, 303]


class RandomDecoder:
    """All allowed tokens are equally likely; a token of `poison` makes a pass fail; `gate` delays every pass."""

    vocabulary = TEXT_VOCABULARY

    def __init__(self, slots: int = 4, columns: int = 512, poison: int | None = None, seed: int = 0) -> None:
        self.slots, self.columns, self.poison = slots, columns, poison
        self.generator, self.gate, self.began = np.random.default_rng(seed), Event(), Event()
        self.gate.set()

    def run(self, inputs: Pass) -> Decisions:
        self.began.set()
        assert self.gate.wait(30)
        assert all(start + count <= self.columns for start, count in zip(inputs.starts, inputs.counts, strict=True))
        if self.poison is not None and (inputs.input_ids == self.poison).any():
            raise RuntimeError("the device is unwell")
        allowed = np.unpackbits(inputs.allowed, axis=-1, count=self.vocabulary, bitorder="little")
        liking = self.generator.random(allowed.shape) * allowed
        logprob = -np.log(allowed.sum(-1)).astype(np.float32)
        return Decisions(liking.argmax(-1), logprob, np.full_like(logprob, -1.0))

    def move(self, source: int, target: int, columns: int) -> None:
        assert 0 <= target < source < self.slots


@pytest.fixture
def decoder() -> RandomDecoder:
    return RandomDecoder()


@pytest.fixture
def writer(decoder: RandomDecoder) -> Iterator[Writer]:
    writer = make_writer(decoder, BoxGrammar(order="xyxy", lead=" "), max_waiting=4)
    yield writer
    decoder.gate.set()
    writer.stop()


class WishfulDecoder(RandomDecoder):
    """Writes one text as far as it may, and what it must beside it; tokens as long as possible."""

    def __init__(self, wish: str) -> None:
        super().__init__()
        self.wish, self.fed = wish.encode(), b""

    def run(self, inputs: Pass) -> Decisions:
        allowed = np.unpackbits(inputs.allowed, axis=-1, count=self.vocabulary, bitorder="little")[0]
        first = 0 if inputs.mask.shape[1] < inputs.mask.shape[2] else len(PROMPT)
        texts = [text_tokenizer().decode_bytes([token]) for token in inputs.input_ids[0]]
        chosen = []
        for place, bits in zip(inputs.select[0], allowed, strict=True):
            written = self.fed + b"".join(texts[first : place + 1])
            left = self.wish.removeprefix(written) if self.wish.startswith(written) else b""
            tokens = np.flatnonzero(bits).tolist()
            liked = [t for t in tokens if t != EOS_ID and left.startswith(text_tokenizer().decode_bytes([t]))]
            chosen.append(max(liked, key=lambda t: len(text_tokenizer().decode_bytes([t])), default=tokens[0]))
        self.fed += b"".join(texts[first : inputs.counts[0]])
        return Decisions(np.array([chosen]), np.zeros((1, len(chosen))), np.zeros((1, len(chosen))))


def make_writer(decoder: RandomDecoder, grammar: Grammar, **settings: object) -> Writer:
    return Writer(decoder, text_tokenizer(), Generation(grammar=grammar, eos_token_id=EOS_ID), **settings)


def question(labels: list[str], **more: object) -> GenerationQuestion:
    return GenerationQuestion(
        [1, 2, 4, 4, 4, 4], FEATURES, [[300 + len(label) % 50] for label in labels], labels, **more
    )


def ask(writer: Writer, asked: GenerationQuestion) -> "Future[list[DecoderRow]]":
    future: Future[list[DecoderRow]] = Future()

    def done(outcome: list[DecoderRow] | Exception) -> None:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    writer.submit(asked, done)
    return future


def answers_of(future: "Future[list[DecoderRow]]") -> list[WrittenAnswer]:
    return [answer for row in future.result(60) for answer in row.answers]


def hold(writer: Writer, decoder: RandomDecoder, labels: list[str]) -> "Future[list[DecoderRow]]":
    """A question in the middle of a pass."""
    decoder.gate.clear()
    decoder.began.clear()
    held = ask(writer, question(labels))
    assert decoder.began.wait(30)
    return held


@pytest.mark.parametrize(
    "grammar",
    [
        BoxGrammar(order="xyxy", lead=" ", none=True),
        BoxGrammar(order="cxcywh", decimals=3),
        PointGrammar(none=True),
        DetectionGrammar(first_loc_id=FIRST_LOC_ID, none=True),
    ],
    ids=lambda grammar: grammar.form,
)
def test_every_answer_to_every_label_parses_and_ends(grammar: Grammar) -> None:
    """REFERENT_ANSWERS=2500 makes it 10,000 answers."""
    generator = random.Random(0)
    writer = make_writer(RandomDecoder(slots=8, columns=640), grammar, max_waiting=ANSWERS)
    asked, answers = [], 0
    while answers < ANSWERS:
        labels = generator.choices(HOSTILE_LABELS, k=generator.randint(1, 5))
        asked.append(ask(writer, question(labels, max_instances=generator.choice([None, 1, 2, 5, 64]))))
        answers += len(labels)
    for future in asked:
        for answer in answers_of(future):
            assert answer.finish_reason == "stop" or (grammar.several and answer.finish_reason == "length")
            found = grammar.read(answer.text)
            assert all(0 <= value <= 1 for written in found for value in written.values)
            if grammar.form == "points" and answer.text != "none":
                assert answer.text.endswith(("</point>", "</points>"))
                assert found
            assert all(0 < answer.score(written.span) <= 1 for written in found)
    writer.stop()


def test_a_failed_pass_fails_its_own_rows_only() -> None:
    poison = 500
    writer = make_writer(RandomDecoder(slots=4, poison=poison), PointGrammar(), max_waiting=100)
    sick = GenerationQuestion([1, 2, 4], FEATURES, [[poison], [301]], ["a", "b"])
    futures = [ask(writer, asked) for asked in (question(["cup"]), sick, question(["red", "blue"]))]
    reasons = [[answer.finish_reason for answer in answers_of(future)] for future in futures]
    assert reasons == [["stop"], ["error", "error"], ["stop", "stop"]]
    writer.stop()


def test_a_pass_that_fails_midway_leaves_its_batch_mates_whole(decoder: RandomDecoder) -> None:
    """The token of one row that the decoder cannot bear comes up while others are being written."""
    decoder.slots = 8
    decoder.poison = text_tokenizer().tokenize_str("7")[-1]
    writer = make_writer(decoder, BoxGrammar(order="xyxy", lead=" "), max_waiting=100)
    answers = [answers_of(future)[0] for future in [ask(writer, question(["cup"])) for _ in range(40)]]
    for answer in answers:
        fed = answer.ids if answer.finish_reason == "error" else answer.ids[:-2]  # what ends an answer is never fed
        assert (answer.finish_reason == "error") == (decoder.poison in fed)
    assert {answer.finish_reason for answer in answers} == {"stop", "error"}
    writer.stop()


@pytest.mark.parametrize("broken", ["move", "run"])
def test_a_device_that_fails_loses_no_question(
    writer: Writer, decoder: RandomDecoder, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Rows that ended before the failure, rows in the middle of it, and rows that are dropped because of it."""
    held = hold(writer, decoder, ["a", "b"])
    futures = [held, *(ask(writer, question([label])) for label in ("cup", "plate", "a red cup"))]
    late = ask(writer, question(["cup"], deadline=time.monotonic()))

    def fails(*arguments: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(decoder, broken, fails)
        decoder.gate.set()
        outcomes = []
        for future in [*futures, late]:
            try:
                outcomes += [answer.finish_reason for answer in answers_of(future)]
            except (RefusedError, RuntimeError) as error:
                outcomes.append(str(error))
    assert len(outcomes) >= 5
    assert any("illegal memory access" in outcome or outcome == "error" for outcome in outcomes)
    assert answers_of(ask(writer, question(["cup"])))[0].finish_reason == "stop"


def test_a_question_past_its_deadline_frees_its_slot(writer: Writer, decoder: RandomDecoder) -> None:
    decoder.slots = 1
    held = hold(writer, decoder, ["cup"])
    held_long = ask(writer, question(["plate"], deadline=time.monotonic()))
    late = ask(writer, question(["plate"], deadline=time.monotonic() + 3600))
    decoder.gate.set()
    with pytest.raises(LateError):
        held_long.result(30)
    assert answers_of(held)[0].finish_reason == "stop"
    assert answers_of(late)[0].finish_reason == "stop"


def test_a_row_whose_time_is_over_while_it_is_written_is_dropped(writer: Writer, decoder: RandomDecoder) -> None:
    decoder.gate.clear()
    decoder.began.clear()
    now = time.monotonic()
    late = ask(writer, question(["cup"], deadline=now + 0.05))
    assert decoder.began.wait(30)
    while time.monotonic() <= now + 0.05:
        pass
    decoder.gate.set()
    with pytest.raises(LateError):
        late.result(30)
    assert answers_of(ask(writer, question(["cup"])))[0].finish_reason == "stop"


def test_the_queue_has_a_bound(writer: Writer, decoder: RandomDecoder) -> None:
    held = hold(writer, decoder, ["cup"])
    waiting = [ask(writer, question(["cup"])) for _ in range(4)]
    with pytest.raises(RefusedError, match="4 requests wait"):
        ask(writer, question(["cup"]))
    decoder.gate.set()
    assert [answers_of(future)[0].finish_reason for future in (held, *waiting)] == ["stop"] * 5
    assert ask(writer, question(["cup"])).result(30)


def test_stopping_finishes_what_is_written_and_refuses_the_rest(writer: Writer, decoder: RandomDecoder) -> None:
    held = hold(writer, decoder, ["cup"])
    waiting = ask(writer, question(["cup"]))
    stopped: Future[None] = Future()
    Thread(target=lambda: stopped.set_result(writer.stop())).start()
    while True:  # until stopping has begun, nothing is refused
        try:
            ask(writer, question(["cup"]))
        except RefusedError as error:
            if "unloaded" in str(error):
                break
    decoder.gate.set()
    assert answers_of(held)[0].finish_reason == "stop"
    with pytest.raises(RefusedError, match="unloaded"):
        waiting.result(30)
    stopped.result(30)


CUP = ' alt="cup">cup'
POINT = f'<point x="12.3" y="45.6"{CUP}</point>'
TWO = f'<points x1="12.3" y1="45.6" x2="7.25" y2="100.0"{CUP}</points>'
THREE = f'<points x1="12.3" y1="45.6" x2="7.25" y2="100.0" x3="0.0" y3="9.99"{CUP}</points>'
ONE_BOX, TWO_BOXES = "<loc0001><loc0002><loc0003><loc0004> cup", "<loc0005><loc0006><loc0007><loc0008> cup"
POINTS = PointGrammar(none=True)
DETECTIONS = DetectionGrammar(first_loc_id=FIRST_LOC_ID, none=True)
EITHER = BoxOrPointsGrammar(box=BoxGrammar(order="xyxy", none=True), points=POINTS)


@pytest.mark.parametrize(
    ("grammar", "wish", "most", "text", "reason"),
    [
        (POINTS, THREE, 3, THREE, "stop"),
        (POINTS, THREE, 64, THREE, "stop"),
        (POINTS, THREE, 2, TWO, "length"),
        (POINTS, THREE, 1, None, "length"),
        (POINTS, POINT, 1, POINT, "stop"),
        (POINTS, POINT, 2, POINT, "stop"),
        (POINTS, "none", 1, "none", "stop"),
        (DETECTIONS, ONE_BOX, 1, ONE_BOX, "stop"),
        (DETECTIONS, f"{ONE_BOX} ; {TWO_BOXES}", 1, ONE_BOX, "length"),
        (DETECTIONS, f"{ONE_BOX} ; {TWO_BOXES}", 2, f"{ONE_BOX} ; {TWO_BOXES}", "stop"),
        (DETECTIONS, "", 1, "", "stop"),
        (EITHER, THREE, 2, TWO, "length"),
        (EITHER, TWO, 2, TWO, "stop"),
        (EITHER, "[0.10, 0.20, 0.30, 0.40]", 1, "[0.10, 0.20, 0.30, 0.40]", "stop"),
    ],
)
def test_a_list_that_the_limit_cuts_says_so(
    grammar: Grammar, wish: str, most: int, text: str | None, reason: str
) -> None:
    writer = make_writer(WishfulDecoder(wish), grammar)
    question = GenerationQuestion(PROMPT[:-1], FEATURES, [PROMPT[-1:]], ["cup"], max_instances=most)
    ((answer,),) = [answers_of(ask(writer, question))]
    assert answer.finish_reason == reason
    assert text in (None, answer.text)
    assert len(grammar.read(answer.text)) <= most
    writer.stop()


def test_what_the_limit_cut_is_no_part_of_the_score() -> None:
    """The question whether the list would go on is no decision of the answer."""
    answers = []
    for wish in (f"{ONE_BOX} ; {TWO_BOXES}", ONE_BOX):
        writer = make_writer(WishfulDecoder(wish), DETECTIONS)
        question = GenerationQuestion(PROMPT[:-1], FEATURES, [PROMPT[-1:]], ["cup"], max_instances=1)
        answers += answers_of(ask(writer, question))
        writer.stop()
    assert [answer.finish_reason for answer in answers] == ["length", "stop"]
    assert [len(answer.decisions) for answer in answers] == [4, 4]


@pytest.mark.parametrize(
    "asked",
    [
        GenerationQuestion([1, 2], FEATURES, [], []),
        GenerationQuestion([1] * 600, FEATURES, [[5]], ["cup"]),
        GenerationQuestion([1], FEATURES, [[5] * 500], ["cup"]),
    ],
    ids=["no expression", "long prefix", "long suffix"],
)
def test_what_cannot_be_answered_is_refused_at_once(writer: Writer, asked: GenerationQuestion) -> None:
    with pytest.raises(QuestionError):
        ask(writer, asked)
    assert ask(writer, question(["cup"])).result(30)


def test_answers_that_do_not_fit_one_row_take_several(decoder: RandomDecoder) -> None:
    writer = make_writer(decoder, PointGrammar(), max_waiting=100)
    written = ask(writer, question(["cup"] * 16, max_instances=5))
    assert len(answers := answers_of(written)) == 16
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    fewer = answers_of(ask(writer, question(["cup"], max_instances=64)))[0]
    assert fewer.text.endswith(("</point>", "</points>"))
    writer.stop()


def test_what_was_dropped_waits_no_more(decoder: RandomDecoder) -> None:
    seen: list[WriterLoad] = []
    writer = make_writer(decoder, BoxGrammar(order="xyxy"), observe=seen.append)
    late = ask(writer, question(["cup"], deadline=time.monotonic()))
    with pytest.raises(LateError):
        late.result(30)
    writer.stop()
    assert (seen[0].waiting, seen[-1].waiting) == (1, 0)


def test_what_goes_on_is_told_after_every_pass(decoder: RandomDecoder) -> None:
    seen: list[WriterLoad] = []
    writer = make_writer(decoder, BoxGrammar(order="xyxy"), observe=seen.append)
    written = ask(writer, question(["cup", "plate"])).result(30)
    writer.stop()
    assert seen[-1].passes == written[0].passes > 4
    assert (seen[-1].waiting, seen[-1].active) == (0, 0)
    assert seen[-1].tokens > 8
    assert math.isfinite(seen[0].active)
