"""Answers that visual-grounding-api's own code gave under a grammar (golden/vg/constrained.json)."""

import numpy as np
import pytest

from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.generation.engine import Decoder, DecoderRow, Engine, WrittenAnswer
from referent.generation.questions import load_tokenizer
from referent.kinds.generator import generation_of


def assert_as_recorded(
    decoder: Decoder, spec: ModelSpec, encoder: PromptEncoder, features: list, cases: list[dict], probes: bool
) -> None:
    """Ids, texts, log-probabilities and scores under the spec's grammar, and under each case's narrower one; `features`
    are those of each case's image."""
    generation, rows = generation_of(spec), []
    tokenizer = load_tokenizer(encoder.tokenizer_json, decoder.vocabulary, generation.eos_token_id)
    engine = Engine(decoder)
    for case, own in zip(cases, features, strict=True):
        larks = [generation.grammar.lark(case["expression"], 1), *([case["probe"]["grammar"]] if probes else [])]
        answers = [WrittenAnswer(tokenizer, lark, encoder.suffix(case["expression"])) for lark in larks]
        rows.append(DecoderRow(encoder.prefix, own, answers))
        if engine.full:
            engine.step()
        engine.admit(rows[-1])
    while engine.active:
        engine.step()
    assert not engine.errors
    for row, case in zip(rows, cases, strict=True):
        for answer, wanted in zip(row.answers, (case["answer"], case["probe"]), strict=probes):
            assert (answer.ids, answer.text) == (wanted["ids"], wanted["text"])
            own = wanted["pil_pixels"]
            allowed = [decision.logprob for decision in answer.decisions]
            np.testing.assert_allclose(allowed, own["logprob_allowed"], atol=1e-4)
            np.testing.assert_allclose([d.logprob + d.mass for d in answer.decisions], own["logprob"], atol=1e-4)
            (written,) = generation.grammar.read(answer.text)
            assert written.values == tuple(wanted["found"][0]["values"])
            assert answer.score(written.span) == pytest.approx(own["score"], rel=1e-4)
