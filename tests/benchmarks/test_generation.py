"""The decoder that knows no forced tokens, against ours."""

from benchmarks.generation import TokenByToken
from referent.generation.engine import Engine
from referent.modeling.grounding import GroundingModel
from referent.modeling.text_decoder import TorchDecoder
from tests.support.text_model import make_cases, rows_of, text_llava, write_joining


def test_a_token_a_pass_writes_the_same_in_more_passes() -> None:
    model = GroundingModel(text_llava(), None).eval()
    decoder = TorchDecoder(model, slots=1, columns=512)
    plain = TokenByToken(decoder)
    passes = 0
    for case in make_cases(model, 4):
        ours, theirs = rows_of(model, case, packed=False), rows_of(model, case, packed=False)
        write_joining(Engine(decoder), ours)
        write_joining(Engine(plain), theirs)
        assert [row.answers[0].ids for row in ours] == [row.answers[0].ids for row in theirs]
        passes += sum(row.passes for row in ours)
    assert plain.passes > 1.5 * passes
