"""A thread that takes questions from a queue and has an `Engine` answer them."""

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import NamedTuple

from llguidance import LLTokenizer

from referent.core.grammar import Generation
from referent.generation.engine import Decoder, DecoderRow, Engine
from referent.generation.questions import GenerationQuestion, plan

FULL, LATE = "Exceeds maximum queue size", "Request timeout expired"  # in the words that Triton itself has for these

logger = logging.getLogger(__name__)


class RefusedError(RuntimeError):
    """A question was not answered because too many wait, its time is over, or the writer stops."""


class LateError(RefusedError):
    """The deadline of a question has passed."""


class WriterLoad(NamedTuple):
    """Current load and totals of a writer."""

    waiting: int  # questions
    active: int  # rows
    passes: int
    tokens: int


Done = Callable[[list[DecoderRow] | Exception], None]  # finished rows, or why none; called in the writer's thread


class _Job:
    def __init__(self, question: GenerationQuestion, rows: list[DecoderRow], done: Done) -> None:
        self.question, self.rows, self.done = question, rows, done
        self.waiting, self.unfinished = deque(rows), len(rows)
        for row in rows:
            row.job = self

    @property
    def started(self) -> bool:
        """Whether a row has a slot, or had one."""
        return len(self.waiting) < len(self.rows)


class Writer:
    """At most `max_waiting` questions wait for a slot. `observe` gets the load after every pass."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: LLTokenizer,
        generation: Generation,
        max_waiting: int = 64,
        observe: Callable[[WriterLoad], None] = lambda load: None,
    ) -> None:
        self._engine, self._columns = Engine(decoder), decoder.columns
        self._tokenizer, self._generation = tokenizer, generation
        self._max_waiting, self._observe = max_waiting, observe
        self._waiting: deque[_Job] = deque()
        self._untold: set[_Job] = set()
        self._changed, self._stopping = Condition(), False
        self._thread = Thread(target=self._write, name="writer", daemon=True)
        self._thread.start()

    def submit(self, question: GenerationQuestion, done: Done) -> None:
        """Queues a question. Raises `QuestionError`, and `RefusedError` where too many wait."""
        job = _Job(question, plan(question, self._tokenizer, self._generation, self._columns), done)
        with self._changed:
            if self._stopping:
                raise RefusedError("the model is being unloaded")
            if len(self._waiting) >= self._max_waiting:
                raise RefusedError(f"{FULL}: {self._max_waiting} requests wait")
            self._waiting.append(job)
            self._untold.add(job)
            self._report()
            self._changed.notify()

    def stop(self) -> None:
        """Refuses what waits, finishes what is being written, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _write(self) -> None:
        while True:
            try:
                if not self._take():
                    return
                self._pass()
            except Exception as error:  # no error of a question or of the device may end the thread
                logger.exception("writing answers failed")
                self._fail_started(error)

    def _take(self) -> bool:
        """Waits for something to do; False where nothing is left and the writer stops."""
        with self._changed:
            while not (self._waiting or self._engine.active or self._stopping):
                self._changed.wait()
            jobs = list(self._waiting)
        now = time.monotonic()
        for job in {row.job: None for row in self._engine.active}:
            if job.question.deadline <= now:
                self._finish(job, LateError(LATE))
        for job in jobs:
            if self._stopping and not job.started:
                self._finish(job, RefusedError("the model is being unloaded"))
            elif job.question.deadline <= now:
                self._finish(job, LateError(LATE))
        return bool(self._engine.active or self._waiting or not self._stopping)

    def _pass(self) -> None:
        while not self._engine.full and (row := self._next_row()):
            try:
                self._engine.admit(row)
            except Exception as error:
                self._finish(row.job, error)
        finished = self._engine.step()
        for fault in self._engine.errors:
            logger.error("a pass failed: %s", fault)
        self._engine.errors.clear()
        with self._changed:
            self._report()
        for row in finished:
            row.job.unfinished -= 1
            if not row.job.unfinished:
                self._tell(row.job, row.job.rows)

    def _next_row(self) -> DecoderRow | None:
        with self._changed:
            if not self._waiting or (self._stopping and not self._waiting[0].started):
                return None
            job = self._waiting[0]
            row = job.waiting.popleft()
            if not job.waiting:
                self._waiting.popleft()
            return row

    def _finish(self, job: _Job, error: Exception) -> None:
        """Takes a question out before it is answered."""
        for row in [row for row in self._engine.active if row.job is job]:
            self._engine.drop(row)
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._report()
        self._tell(job, error)

    def _fail_started(self, error: Exception) -> None:
        """Fails all questions that have or had a row. The decoder is not touched: it may be what failed."""
        self._engine.abandon()
        with self._changed:
            started = [job for job in self._untold if job.started]
            self._waiting = deque(job for job in self._waiting if not job.started)
            self._report()
        for job in started:
            self._tell(job, error)

    def _tell(self, job: _Job, outcome: list[DecoderRow] | Exception) -> None:
        with self._changed:
            if job not in self._untold:
                return
            self._untold.remove(job)
        try:
            job.done(outcome)
        except Exception:
            logger.exception("an answer could not be given")

    def _report(self) -> None:
        engine = self._engine
        self._observe(WriterLoad(len(self._waiting), len(engine.active), engine.passes, engine.tokens))
