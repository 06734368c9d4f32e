"""An answer without forced tokens, against ours."""

from benchmarks.generation import PlainAnswer
from referent.generation.engine import Engine
from referent.modeling.grounding import GroundingModel
from referent.modeling.text_decoder import TorchDecoder
from tests.support.text_model import make_cases, rows_of, text_llava, write_joining
from tests.support.text_tokenizer import text_tokenizer


def test_a_token_a_pass_writes_the_same_in_a_pass_for_each_token() -> None:
    model = GroundingModel(text_llava(), None).eval()
    engine = Engine(TorchDecoder(model, slots=1, columns=512))
    passes = 0
    for case in make_cases(model, 4):
        ours, theirs = rows_of(model, case, packed=False), rows_of(model, case, packed=False)
        for row, lark, suffix in zip(theirs, case.larks, case.suffixes, strict=True):
            row.answers = [PlainAnswer(text_tokenizer(), lark, suffix)]
        write_joining(engine, ours)
        write_joining(engine, theirs)
        for forced, plain in zip(ours, theirs, strict=True):
            (answer,) = plain.answers
            assert answer.ids == forced.answers[0].ids
            assert plain.passes in (len(answer.ids), len(answer.ids) + 1)  # with its end, if that is a token
            passes += plain.passes - forced.passes
    assert passes > 0
