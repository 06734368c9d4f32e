"""The cost of answers in text: forced tokens, packed expressions, rows written together, the loop around the graph.

    python -m benchmarks.generation [--rounds 4] [--requests 1000] [--work DIR]

Weights are random, which does not affect times. In process: a language model of hidden size 1024 with LLaVA-1.5's
vocabulary (eight layers, 144 image tokens). Through Triton and the gateway: one of mini's shape, compared with
transformers' generate behind FastAPI, which writes as many tokens. `--work` keeps the exported models for another run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks import peers
from benchmarks.lib.checkpoints import save_random, spec_like, wide_config
from benchmarks.lib.measuring import Blocks, Goal, Report, Row, arguments_of, bars, median, over_rounds, spread
from benchmarks.lib.memory import memory_mb
from benchmarks.lib.service import EXPRESSIONS, PICTURE, REPOSITORY, Subject, serve
from benchmarks.soak import GROWTH_PERCENT, growth
from export.build import export
from referent.generation.engine import Ask, Bits, DecoderRow, Engine, WrittenAnswer
from referent.generation.onnx import OnnxDecoder
from referent.generation.questions import load_tokenizer, plan, question_of
from referent.kinds.generator import generation_of
from referent.mini.shape import mini_config
from referent.modeling.checkpoint import CheckpointSpec
from referent.modeling.grounder import load_grounder

WIDE, SMALL = "wide", "small"
ROWS = 8
SAMPLES = 40  # of memory


class InProcessWriter:
    """A published generator's loop in this process, without its vision encoder: image features are random numbers."""

    def __init__(self, subject: Subject) -> None:
        self._generation = generation_of(subject.bundle)
        self.decoder = OnnxDecoder(subject.graphs["generator"], slots=ROWS, columns=512)
        encoder = subject.processor.encoder
        self._tokenizer = load_tokenizer(encoder.tokenizer_json, self.decoder.vocabulary, self._generation.eos_token_id)
        self._subject, self._data = subject, PICTURE.read_bytes()

    def row(self, expressions: Sequence[str], seed: int = 0, answer: type[WrittenAnswer] = WrittenAnswer) -> DecoderRow:
        """One image with so many expressions."""
        shape = (1, self._subject.bundle.image_tokens, self.decoder.width)
        features = np.random.default_rng(seed).standard_normal(shape, np.float32)
        question = question_of(self._subject.arrays(self._data, expressions), features)
        [row] = plan(question, self._tokenizer, self._generation, self.decoder.columns)
        if answer is not WrittenAnswer:
            larks = [self._generation.grammar.lark(label, 1) for label in question.labels]
            row.answers = [answer(self._tokenizer, *given) for given in zip(larks, question.suffixes, strict=True)]
        return row


class PlainAnswer(WrittenAnswer):
    """Takes a pass for each token, also for those that the grammar forces."""

    def _force(self) -> None:
        self._end()

    def asks(self, first: int) -> list[Ask]:
        asked, forced = super().asks(first), self._matcher.compute_ff_tokens()
        return [ask._replace(allowed=_bit(forced[0], len(ask.allowed))) if forced else ask for ask in asked]


def _bit(token: int, size: int) -> Bits:
    bits = np.zeros(size, np.uint8)
    bits[token // 8] = 1 << token % 8
    return bits


def write(engine: Engine, rows: Sequence[DecoderRow]) -> None:
    """Answers rows, as many at once as there are slots."""
    waiting = list(rows)
    while waiting or engine.active:
        while waiting and not engine.full:
            engine.admit(waiting.pop(0))
        engine.step()
    if engine.errors:
        raise engine.errors[0]


def one_by_one(engine: Engine, rows: Sequence[DecoderRow]) -> None:
    for row in rows:
        write(engine, [row])


def decoding_ms(engine: Engine, rows: Sequence[DecoderRow]) -> float:
    """Milliseconds of all passes after the prefills of rows that are written together."""
    for row in rows:
        engine.admit(row)
    start = time.perf_counter()
    write(engine, [])
    return 1000 * (time.perf_counter() - start)


def longest(writer: InProcessWriter) -> tuple[int, Goal]:
    """The seed of an image whose box takes the most passes, and how many."""
    rows = [writer.row(EXPRESSIONS[:1], seed) for seed in range(5 * ROWS)]
    write(Engine(writer.decoder), rows)
    most = max(row.passes for row in rows)
    figure = Goal(f"passes of a box, most of {len(rows)}", "<= 12", str(most), most <= 12)
    return next(seed for seed, row in enumerate(rows) if row.passes == most), figure


def forced(writer: InProcessWriter, seed: int, rounds: int) -> tuple[list[Row], list[Goal]]:
    """One box, forced tokens with their decisions or in passes of their own."""
    engine = Engine(writer.decoder)
    ways = {"forced": WrittenAnswer, "a token a pass": PlainAnswer}
    texts, times, passes = set(), {}, {}
    for name, way in ways.items():
        row = writer.row(EXPRESSIONS[:1], seed, way)
        write(engine, [row])
        texts.add(row.answers[0].text)
        times[name], passes[name] = list[list[float]](), row.passes
    assert len(texts) == 1
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append([decoding_ms(engine, [writer.row(EXPRESSIONS[:1], seed, way)])])
    gains = over_rounds(lambda own, plain: plain / own, *times.values())
    rows = [{"a box": name, "passes": passes[name], "decoding, ms": median(times[name])} for name in ways]
    gain = statistics.median(gains)
    return rows, [Goal("forced against one token a pass, one box, decoding", ">= 2x", spread(gains), gain >= 2)]


def packed(writer: InProcessWriter, seed: int, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Eight expressions of one image in one row, against eight rows of one, alone and together; prefills included."""
    texts, engine = EXPRESSIONS[:ROWS], Engine(writer.decoder)

    def singles() -> list[DecoderRow]:
        return [writer.row([text], seed) for text in texts]

    ways: dict[str, Callable[[], object]] = {
        "packed": lambda: write(engine, [writer.row(texts, seed)]),
        "single, one after another": lambda: one_by_one(engine, singles()),
        "single, all at once": lambda: write(engine, singles()),
    }
    times = once_each(ways, rounds)
    rows = [{"eight expressions": way, "ms": median(blocks)} for way, blocks in times.items()]
    gains = over_rounds(lambda packed, single: single / packed, times["packed"], times["single, one after another"])
    what = "8 expressions packed against 8 single answers"
    return rows, [Goal(what, ">= 3x", spread(gains), statistics.median(gains) >= 3)]


def together(writer: InProcessWriter, seed: int, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Eight rows written together, against one: tokens a second of the passes that decode."""
    engine, counts = Engine(writer.decoder), (1, ROWS)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            rows = [writer.row(EXPRESSIONS[:1], seed) for _ in range(count)]
            ms = decoding_ms(engine, rows)
            rates[count].append(1000 * sum(len(row.answers[0].ids) for row in rows) / ms)
    gains = [many / one for one, many in zip(*rates.values(), strict=True)]
    table = [{"rows": count, "tokens/s": statistics.median(found)} for count, found in rates.items()]
    met = statistics.median(gains) >= 2.5
    return table, [Goal("tokens/s of 8 rows against 1, decoding", ">= 2.5x", spread(gains), met)]


def loop(writer: InProcessWriter, seed: int, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Processor time of a pass over eight rows outside the graph: grammars, masks, and copying keys and values. It is
    the time of this thread, which other programs don't affect."""
    engine, timed = Engine(writer.decoder), TimedSession(writer.decoder)
    outside = []
    for _ in range(rounds):
        for _ in range(ROWS):
            engine.admit(writer.row(EXPRESSIONS[:1], seed))
        while engine.active:
            timed.ms, start = 0.0, time.thread_time()
            engine.step()
            outside.append(1000 * (time.thread_time() - start) - timed.ms)
    timed.end()
    figure = statistics.median(outside)
    table = {"rows": ROWS, "passes": len(outside), "outside, p50 ms": figure, "p95": float(np.percentile(outside, 95))}
    return [table], [Goal("loop outside ONNX Runtime, ms a pass at 8 rows", "<= 1.5", f"{figure:.2f}", figure <= 1.5)]


class TimedSession:
    """Adds up the milliseconds of this thread that a decoder spends in its graph."""

    def __init__(self, decoder: OnnxDecoder) -> None:
        self._decoder, self._session, self.ms = decoder, decoder._session, 0.0
        decoder._session = self

    def run_with_iobinding(self, binding: Any) -> None:
        start = time.thread_time()
        self._session.run_with_iobinding(binding)
        self.ms += 1000 * (time.thread_time() - start)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def end(self) -> None:
        self._decoder._session = self._session


def served(
    repository: Path, checkpoint: Path, seconds: float, rounds: int, requests: int
) -> tuple[dict[str, list[Row]], list[Goal]]:
    """The small model through the gateway: beside transformers' generate, and its memory."""
    bodies = [question.body for question in peers.questions()]
    tables: dict[str, list[Row]] = {}
    with (
        serve(repository, REFERENT_DEFAULT_MODEL=SMALL, REFERENT_MODELS=SMALL) as ours,
        peers.peer(peers.TEXT, checkpoint, peers.TEXT_TOKENS, bodies[0]) as theirs,
    ):
        urls = {peers.TEXT: theirs, peers.OURS: ours.url}
        tokens = {name: peers.ask(url, bodies[0]).get("tokens") for name, url in urls.items()}
        loads = peers.throughput(urls, [1, ROWS], seconds, rounds)
        tables["closed loop, mini's shape"] = [
            {"server": name, "clients": count, "answers/s": load.per_s, "failed": load.failed, **load.times()}
            for (name, count), load in loads.items()
        ]
        our_rate, their_rate = (loads[name, ROWS].per_s for name in (peers.OURS, peers.TEXT))
    faster = our_rate / their_rate
    found = f"{our_rate:.1f} against {their_rate:.1f} of {tokens[peers.TEXT]} tokens each: {faster:.1f}x"
    figures = [
        Goal("answers/s at 8 clients against transformers' generate behind FastAPI", ">= 3x", found, faster >= 3)
    ]
    samples = memory(repository, requests)
    grew = growth(samples, requests)
    tables[f"memory over {requests} requests"] = samples
    found = ", ".join(f"{program} {percent:+.1f} %" for program, percent in grew.items())
    what = f"memory over {requests} requests, second half"
    return tables, [*figures, Goal(what, f"<= +{GROWTH_PERCENT} %", found, max(grew.values()) <= GROWTH_PERCENT)]


def memory(repository: Path, requests: int) -> list[Row]:
    """Resident memory of all programs while this many requests of one to eight expressions are answered."""
    samples: list[Row] = []
    with (
        serve(repository, REFERENT_DEFAULT_MODEL=SMALL, REFERENT_MODELS=SMALL) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        data = PICTURE.read_bytes()
        for number in range(requests + 1):
            if number % (requests // SAMPLES) == 0:
                samples += [{"requests": number} | program for program in memory_mb({"gateway": service.process.pid})]
            expressions = EXPRESSIONS[: 1 + number % ROWS]
            client.post("/v1/ground", files={"image": data}, data={"expression": expressions}).raise_for_status()
    return samples


def once_each(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, Blocks]:
    """Times of one call each, the ways in turn."""
    times: dict[str, Blocks] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            times[way].append([1000 * (time.perf_counter() - start)])
    return times


def prepare(work: Path) -> tuple[Path, dict[str, Path]]:
    """The repository with both models, and their checkpoints, made unless they are there."""
    repository, configs = work / "model_repository", {WIDE: wide_config(), SMALL: mini_config()}
    checkpoints = {name: work / "checkpoints" / name for name in configs}
    model = spec_like(REPOSITORY, "mini", text=True)
    for name, config in configs.items():
        if not (repository / name).exists():
            save_random(checkpoints[name], *model, config, seed=0 if name == WIDE else long_winded(work, *model))
            export(checkpoints[name], name, repository)
    return repository, checkpoints


def long_winded(work: Path, spec: CheckpointSpec, tokenizer_file: Path) -> int:
    """A seed of weights that never write 1.00, which takes two decisions less, so that a box takes the most passes."""
    for seed in range(100):
        grounder = load_grounder(save_random(work / "seeds" / str(seed), spec, tokenizer_file, seed=seed), "cpu")
        pictures = [Image.open(peers.SAMPLES / question.picture) for question in peers.questions()]
        answers = [grounder.ground(picture.convert("RGB"), EXPRESSIONS[:1])[0] for picture in pictures]
        if not any("1.00" in (answer.text or "") for answer in answers):
            return seed
    raise RuntimeError("no random weights of a hundred seeds say boxes without 1.00")


def measure(work: Path, rounds: int, requests: int, seconds: float) -> tuple[dict[str, list[Row]], list[Goal]]:
    """All tables, and what was found for each goal."""
    repository, checkpoints = prepare(work)
    wide = InProcessWriter(Subject(repository, WIDE))
    seed, figure = longest(wide)
    tables, figures = {}, [figure]
    parts = {"forced tokens": forced, "packed expressions": packed, "rows together": together, "the loop": loop}
    for title, part in parts.items():
        tables[f"{title}, hidden size 1024"], found = part(wide, seed, rounds)
        figures += found
    del wide
    more, found = served(repository, checkpoints[SMALL], seconds, max(2, rounds // 2), requests)
    return tables | more, figures + found


def main() -> None:
    parser = arguments_of(__doc__)
    add_options(parser)
    arguments = parser.parse_args()
    report = Report("generation", arguments.out)
    with tempfile.TemporaryDirectory() as directory:
        work = arguments.work or Path(directory)
        tables, figures = measure(work, arguments.rounds, arguments.requests, arguments.seconds)
    for title, rows in tables.items():
        report.add(title, rows)
    report.add("goals", [figure._asdict() | {"met": "yes" if figure.met else "no"} for figure in figures])
    rows = tables["packed expressions, hidden size 1024"]
    report.chart(lambda axes: bars(axes, {row["eight expressions"]: row["ms"] for row in rows}, "ms"))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1000, help="over which memory is looked at")
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--work", type=Path, help="keep the exported models here, or find them")


if __name__ == "__main__":
    main()
