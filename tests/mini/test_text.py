import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher
from PIL import Image

from referent.core.bundle import TOKENIZER_FILE
from referent.core.grammar import NONE
from referent.core.prompts import PromptEncoder
from referent.data.expressions import Expression
from referent.generation.questions import load_tokenizer
from referent.mini.canvas import SIDE, Scene
from referent.mini.icons import Materials
from referent.mini.pretrain import mini_spec
from referent.mini.shape import SPECIAL_TOKENS, VOCABULARY_SIZE
from referent.mini.text import (
    GRAMMAR,
    MAX_INSTANCES,
    ROOM,
    ROOM_FOR_MANY,
    AnswerStream,
    question_and_answer,
    text_spec,
)
from referent.mini.tokenizer import train_tokenizer
from referent.training.losses import NO_LABEL


@pytest.fixture
def answers(materials: Materials, tmp_path: Path) -> AnswerStream:
    train_tokenizer(["the red cup", "point to all cups"] * 50, tmp_path / TOKENIZER_FILE)
    spec = text_spec(mini_spec())
    encoder = PromptEncoder(spec.prompt, tmp_path / TOKENIZER_FILE, spec.image_tokens)
    return AnswerStream(materials, spec, encoder, {"icons": 1.0}, 8, batch=2, seed=0)


def test_what_is_learnt_is_what_stands_next_in_the_row(answers: AnswerStream) -> None:
    written = 0
    for index in range(len(answers)):
        row = answers[index]
        learnt = row["labels"] != NO_LABEL
        ends = row["labels"] == SPECIAL_TOKENS.index("</s>")
        positions = row["loc_positions"][learnt & ~ends]
        assert (row["input_ids"][positions + 1] == row["labels"][learnt & ~ends]).all()
        for answer in np.split(row["labels"][learnt], np.flatnonzero(ends[learnt]) + 1)[:-1]:
            text = answers.encoder.decode(answer[:-1])
            assert text.strip() == NONE or GRAMMAR.read(text)
            written += 1
    assert written > len(answers)


def test_every_fourth_batch_has_long_lists(answers: AnswerStream) -> None:
    stream = replace(answers, samples=80)
    longest: dict[bool, int] = {False: 0, True: 0}
    for index in range(0, stream.samples, stream.batch):
        row, many = stream[index], index // stream.batch % 4 == 3
        assert len(row["input_ids"]) == (ROOM_FOR_MANY if many else ROOM).row.tokens
        for answer in np.split(row["labels"], np.flatnonzero(row["labels"] == SPECIAL_TOKENS.index("</s>"))):
            text = stream.encoder.decode(answer[answer != NO_LABEL].tolist())
            longest[many] = max(longest[many], len(GRAMMAR.points.read(text)))
    assert longest[True] > 16 > longest[False]


@pytest.mark.parametrize("targets", [(1,), (2, 0), (), (0, 1, 2)], ids=len)
@pytest.mark.parametrize("words", ["the cup", "point to 2 cups", 'all "red" <cups> & plates', "die tasse für käse"])
def test_the_grammar_allows_the_very_tokens_that_are_learnt(
    answers: AnswerStream, targets: tuple[int, ...], words: str
) -> None:
    scene = Scene(Image.new("RGB", (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint8))
    for left in (10, 40, 90):
        scene.add("cup", (left, 96, left + 20, 144))
    end = SPECIAL_TOKENS.index("</s>")
    tokenizer = load_tokenizer(answers.encoder.tokenizer_json, VOCABULARY_SIZE, end)
    frame = mini_spec().frame(scene.image.size)
    for seed in range(8):
        asked, text = question_and_answer(random.Random(seed), scene, Expression("name", words, targets), frame)
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(GRAMMAR.lark(asked, MAX_INSTANCES)))
        ids = answers.encoder.answer(text)
        assert matcher.try_consume_tokens(ids) == len(ids), (asked, text)
        assert matcher.is_accepting()


@pytest.mark.parametrize(("targets", "form"), [((1,), " [0."), ((2, 0), " <points"), ((), f" {NONE}")])
def test_one_object_is_a_box_and_several_are_points_from_left_to_right(targets: tuple[int, ...], form: str) -> None:
    scene = Scene(Image.new("RGB", (144, SIDE)), np.zeros((SIDE, 144), np.uint8))
    for left in (10, 40, 90):
        scene.add("cup", (left, 96, left + 20, 144))
    frame = mini_spec().frame(scene.image.size)
    rng = random.Random(1)
    asked = dict(question_and_answer(rng, scene, Expression("name", "cups", targets), frame) for _ in range(30))
    plain = asked["cups"]
    assert plain.startswith(form)
    for words, text in asked.items():
        marks = [written.values for written in GRAMMAR.read(text)]
        assert len(marks) == len(targets)
        assert [mark[0] for mark in marks] == sorted(mark[0] for mark in marks)
        assert ("<point" in text) == (bool(targets) and (words != "cups" or len(targets) > 1))
        for mark, target in zip(marks, sorted(targets), strict=True):
            x1, y1, x2, y2 = scene.boxes[target]
            middle = frame.points_from_image(np.array([[(x1 + x2) / 2, (y1 + y2) / 2]]))[0]
            assert mark[:2] == pytest.approx(middle.tolist(), abs=0.006)
