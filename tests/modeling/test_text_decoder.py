"""Answers of our loop against transformers' own forward pass, and against the published baseline's."""

import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from llguidance import LLTokenizer
from PIL import Image

from referent.core.grammar import BoxGrammar, DetectionGrammar, Grammar, PointGrammar
from referent.core.prompts import PromptEncoder
from referent.generation.engine import Answer, Engine, Row
from referent.modeling.grounding import GroundingModel
from referent.modeling.llava import llava_spec, llava_tokenizer
from referent.modeling.stem import load_llava
from referent.modeling.text_decoder import TorchDecoder
from tests.support.text_model import (
    BOS_ID,
    FIRST_LOC_ID,
    IMAGE_ID,
    Reference,
    constrained_greedy,
    text_llava,
    text_tokenizer,
)

GRAMMARS = [
    BoxGrammar(order="cxcywh", lead=" "),
    BoxGrammar(order="xyxy", decimals=3, none=True),
    PointGrammar(none=True),
    DetectionGrammar(first_loc_id=FIRST_LOC_ID, none=True),
]
LEAST_GAP = 1e-4  # two tokens closer than that may change places with the order of additions


class Case(NamedTuple):
    prefix: list[int]
    features: torch.Tensor
    suffixes: list[list[int]]
    larks: list[str]
    references: list[Reference]


@pytest.fixture(scope="module")
def model() -> GroundingModel:
    return GroundingModel(text_llava(), None).eval()


@pytest.fixture(scope="module")
def cases(model: GroundingModel) -> list[Case]:
    """Random images, each with one to three questions."""
    generator = random.Random(0)
    found = []
    for index in range(50):
        pixels = torch.from_numpy(np.random.default_rng(index).integers(0, 256, (1, 28, 28, 3), np.uint8))
        normalised = (pixels.permute(0, 3, 1, 2) - model.mean) / model.std
        prefix = [BOS_ID, *generator.choices(range(5, 300), k=generator.randint(0, 3)), *[IMAGE_ID] * 4]
        suffixes = [generator.choices(range(5, 300), k=generator.randint(1, 9)) for _ in range(generator.randint(1, 3))]
        grammar: Grammar = GRAMMARS[index % len(GRAMMARS)]
        larks = [grammar.lark("the <red> cup", 3) for _ in suffixes]
        references = [
            constrained_greedy(model.base, normalised, prefix + suffix, lark)
            for suffix, lark in zip(suffixes, larks, strict=True)
        ]
        features = model.encode_image(pixels).detach()
        found.append(Case(prefix, features, suffixes, larks, references))
    return found


def rows_of(case: Case, packed: bool) -> list[Row]:
    answers = [Answer(text_tokenizer(), *pair) for pair in zip(case.larks, case.suffixes, strict=True)]
    groups = [answers] if packed else [[answer] for answer in answers]
    return [Row(case.prefix, case.features, group, job=case) for group in groups]


def assert_as_reference(rows: list[Row], cases: list[Case]) -> None:
    skipped = 0
    for case in cases:
        answers = [answer for row in rows if row.job is case for answer in row.answers]
        for answer, reference in zip(answers, case.references, strict=True):
            if reference.least_gap < LEAST_GAP:
                skipped += 1
                continue
            assert answer.finish_reason == "stop"
            assert answer.ids == reference.ids
            found = [decision.logprob + decision.mass for decision in answer.decisions]
            np.testing.assert_allclose(found, reference.logprobs, atol=1e-4)
    assert skipped <= len(cases) / 10


@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_rows_that_join_midway_answer_as_transformers_does(
    model: GroundingModel, cases: list[Case], packed: bool
) -> None:
    engine = Engine(TorchDecoder(model, slots=4, columns=512))
    waiting = [row for case in cases for row in rows_of(case, packed)]
    rows, most = list(waiting), 0
    while waiting or engine.active:
        if waiting and not engine.full:  # one before each pass
            engine.admit(waiting.pop(0))
        most = max(most, len(engine.active))
        engine.step()
    assert most > 1
    assert not engine.errors
    assert_as_reference(rows, cases)


def test_a_row_alone_answers_as_transformers_does(model: GroundingModel, cases: list[Case]) -> None:
    engine = Engine(TorchDecoder(model, slots=1, columns=512))
    rows = [row for case in cases[:4] for row in rows_of(case, packed=True)]
    for row in rows:
        engine.admit(row)
        while engine.active:
            engine.step()
    assert_as_reference(rows, cases[:4])


def test_another_image_gives_another_answer(model: GroundingModel, cases: list[Case]) -> None:
    """Or the comparisons above would say little."""
    (row,) = rows_of(cases[1], packed=True)
    row.image_features = cases[2].features
    engine = Engine(TorchDecoder(model, slots=1, columns=512))
    engine.admit(row)
    while engine.active:
        engine.step()
    found = [decision.logprob for answer in row.answers for decision in answer.decisions]
    expected = [p for reference in cases[1].references for p in reference.logprobs]
    assert len(found) != len(expected) or not np.allclose(found, expected, atol=1e-2)


def test_the_published_baseline_answers_as_its_own_code_does(data_folder: Path) -> None:
    golden = data_folder / "golden" / "vg"
    base = golden / "base-llava-1.5-tiny-hf"
    spec = llava_spec(base, llava_tokenizer(base), template="vg-text", center_crop=True, kind="generator")
    model = GroundingModel(load_llava(str(base), torch.float32), None).eval()
    encoder = PromptEncoder(spec.prompt, base / "tokenizer.json", spec.image_tokens)
    tokenizer = LLTokenizer(str(base / "tokenizer.json"), n_vocab=576, eos_token=2)
    engine = Engine(TorchDecoder(model, slots=8, columns=1024))
    grammar = BoxGrammar(order="cxcywh", lead=" ")
    expected = json.loads((golden / "constrained.json").read_text())["cases"]
    rows = []
    for case in expected:
        square = clip_square(Image.open(golden / case["image"]).convert("RGB"), spec.image.size)
        features = model.encode_image(torch.from_numpy(square[None])).detach()
        larks = (grammar.lark(case["expression"], 1), case["probe"]["grammar"])
        answers = [Answer(tokenizer, lark, encoder.suffix(case["expression"])) for lark in larks]
        rows.append(Row(encoder.prefix, features, answers))
        engine.admit(rows[-1])
    while engine.active:
        engine.step()
    for row, case in zip(rows, expected, strict=True):
        for answer, wanted in zip(row.answers, (case["answer"], case["probe"]), strict=True):
            assert (answer.ids, answer.text) == (wanted["ids"], wanted["text"])
            own = wanted["pil_pixels"]
            allowed = [decision.logprob for decision in answer.decisions]
            np.testing.assert_allclose(allowed, own["logprob_allowed"], atol=1e-4)
            np.testing.assert_allclose([d.logprob + d.mass for d in answer.decisions], own["logprob"], atol=1e-4)
            (written,) = grammar.read(answer.text)
            assert written.values == tuple(wanted["found"][0]["values"])
            assert answer.score(written.span) == pytest.approx(own["score"], rel=1e-4)


def clip_square(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's own processor on PIL: the shorter side to `size`, the other cut to a whole number, then the centre."""
    width, height = (int(size * side / min(image.size)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size)))
