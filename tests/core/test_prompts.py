from pathlib import Path

import pytest
from pydantic import ValidationError

from referent.core.prompts import ExpressionError, Prompt, PromptEncoder, clean_expression
from tests.support.tiny import SPECIAL_TOKENS, TINY_IMAGE_TOKENS, TINY_PROMPT


@pytest.fixture
def encoder(tokenizer_file: Path) -> PromptEncoder:
    return PromptEncoder(TINY_PROMPT, tokenizer_file, TINY_IMAGE_TOKENS)


def test_prefix_ends_with_the_image_and_suffix_with_loc(encoder: PromptEncoder) -> None:
    assert encoder.prefix == [2, 3, 3, 3, 3]
    assert encoder.suffix("the red cup")[-1] == 4


@pytest.mark.parametrize("typed", ["<image>", "[LOC]", "<s>", "the <image> [LOC] cup", "<pad>"])
def test_special_tokens_that_a_caller_types_stay_text(encoder: PromptEncoder, typed: str) -> None:
    special = set(range(len(SPECIAL_TOKENS))) - {SPECIAL_TOKENS.index("<unk>")}
    assert not special & set(encoder.suffix(typed)[:-1])


def test_loc_as_plain_text_has_no_token_of_its_own(tokenizer_file: Path) -> None:
    prompt = TINY_PROMPT.model_copy(update={"loc_token_id": None})
    suffix = PromptEncoder(prompt, tokenizer_file, TINY_IMAGE_TOKENS).suffix("cup")
    assert 4 not in suffix
    assert len(suffix) > len(PromptEncoder(TINY_PROMPT, tokenizer_file, TINY_IMAGE_TOKENS).suffix("cup")) - 1


def test_white_space_and_unicode_forms_do_not_change_the_prompt(encoder: PromptEncoder) -> None:
    assert encoder.suffix("  the\n red\tcup ") == encoder.suffix("the red cup")
    assert clean_expression("cafe\u0301") == "caf\u00e9"


@pytest.mark.parametrize(("expression", "reason"), [("", "empty"), (" \n", "empty"), ("x" * 1001, "1001 characters"),
                                                    ("a\x00b", "control")])  # fmt: skip
def test_bad_expressions_are_refused_with_the_reason(expression: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason):
        clean_expression(expression)


@pytest.mark.parametrize(
    "template",
    [
        "{expression}[LOC]",
        "<image>[LOC]",
        "<image>{expression}",  # with a token for [LOC]
        "{expression}<image>[LOC]",
        "<image>{expression}[LOC] please",
    ],
)
def test_templates_without_the_marks_in_order_are_refused(template: str) -> None:
    with pytest.raises(ValidationError, match="template"):
        Prompt(**TINY_PROMPT.model_dump() | {"template": template})


def test_answers_in_text_are_spelt_and_read_back(encoder: PromptEncoder) -> None:
    assert encoder.decode(encoder.answer("[0.512, 0.300, 0.200, 1.000]")) == "[0.512, 0.300, 0.200, 1.000]"
    with pytest.raises(ValueError, match="cannot spell"):
        encoder.answer("0;5")
