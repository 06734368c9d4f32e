"""Answers of our loop against transformers' own forward pass."""

import pytest

from referent.generation.engine import Engine
from referent.modeling.grounding import GroundingModel
from referent.modeling.text_decoder import TorchDecoder
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
