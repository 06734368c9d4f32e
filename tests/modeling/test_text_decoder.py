"""Answers of our loop against transformers' own forward pass, and against the published baseline's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from llguidance import LLTokenizer
from PIL import Image

from referent.core.grammar import BoxGrammar
from referent.core.prompts import PromptEncoder
from referent.generation.engine import DecoderRow, Engine, WrittenAnswer
from referent.modeling.grounding import GroundingModel
from referent.modeling.llava import llava_spec, llava_tokenizer
from referent.modeling.text_decoder import TorchDecoder
from referent.modeling.weights import load_llava
from tests.support.text_model import Case, assert_as_reference, make_cases, rows_of, text_llava, write_joining


@pytest.fixture(scope="module")
def model() -> GroundingModel:
    return GroundingModel(text_llava(), None).eval()


@pytest.fixture(scope="module")
def cases(model: GroundingModel) -> list[Case]:
    return make_cases(model, 50)


@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_rows_that_join_midway_answer_as_transformers_does(
    model: GroundingModel, cases: list[Case], packed: bool
) -> None:
    rows = [row for case in cases for row in rows_of(model, case, packed)]
    assert write_joining(Engine(TorchDecoder(model, slots=4, columns=512)), rows) > 1
    assert_as_reference(rows, cases)


def test_a_row_alone_answers_as_transformers_does(model: GroundingModel, cases: list[Case]) -> None:
    rows = [row for case in cases[:4] for row in rows_of(model, case, packed=True)]
    assert write_joining(Engine(TorchDecoder(model, slots=1, columns=512)), rows) == 1
    assert_as_reference(rows, cases[:4])


def test_another_image_gives_another_answer(model: GroundingModel, cases: list[Case]) -> None:
    """Or the comparisons above would say little."""
    other = cases[1]._replace(pixels=cases[2].pixels)
    rows = rows_of(model, other, packed=True)
    write_joining(Engine(TorchDecoder(model, slots=1, columns=512)), rows)
    with pytest.raises(AssertionError):
        assert_as_reference(rows, [other])


def test_the_published_baseline_answers_as_its_own_code_does(data_folder: Path) -> None:
    golden = data_folder / "golden" / "vg"
    base = golden / "base-llava-1.5-tiny-hf"
    spec = llava_spec(base, llava_tokenizer(base), template="vg-text", center_crop=True, kind="generator")
    model = GroundingModel(load_llava(base, torch.float32), None).eval()
    encoder = PromptEncoder(spec.prompt, base / "tokenizer.json", spec.image_tokens)
    tokenizer = LLTokenizer(str(base / "tokenizer.json"), n_vocab=576, eos_token=2)
    engine = Engine(TorchDecoder(model, slots=8, columns=1024))
    grammar = BoxGrammar(order="cxcywh", lead=" ")
    expected = json.loads((golden / "constrained.json").read_text())["cases"]
    rows = []
    for case in expected:
        square = spec.image.apply(Image.open(golden / case["image"]).convert("RGB"))
        features = model.encode_image(torch.from_numpy(square[None])).detach()
        larks = (grammar.lark(case["expression"], 1), case["probe"]["grammar"])
        answers = [WrittenAnswer(tokenizer, lark, encoder.suffix(case["expression"])) for lark in larks]
        rows.append(DecoderRow(encoder.prefix, features, answers))
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
