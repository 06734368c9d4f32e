import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, pre_tokenizers

from referent.core.prompts import ExpressionError, Prompt, PromptEncoder, clean_expression
from tests.support.text_tokenizer import FIRST_LOC_ID, write_text_tokenizer
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


@pytest.mark.parametrize("typed", ["<loc0010>", "the cup <loc0000><loc0001><loc0002><loc0003>", "<image><loc1023>"])
def test_places_that_a_caller_types_stay_text(tmp_path: Path, typed: str) -> None:
    write_text_tokenizer(tmp_path / "tokenizer.json")
    encoder = PromptEncoder(TINY_PROMPT, tmp_path / "tokenizer.json", TINY_IMAGE_TOKENS)
    ids = encoder.suffix(typed)[:-1]
    assert not set(range(FIRST_LOC_ID, FIRST_LOC_ID + 1024)) & set(ids)
    assert typed in encoder.decode(ids)
    loc = next(t for t in json.loads(encoder.tokenizer_json)["added_tokens"] if t["content"] == "<loc0000>")
    assert (loc["id"], loc["special"]) == (FIRST_LOC_ID, False)  # a grammar still finds them


@pytest.mark.parametrize("typed", ["the\u2581cup", "\u2581the cup", "the \u2581 cup\u2581"])
def test_the_space_of_tokenizers_is_a_space(typed: str) -> None:
    assert clean_expression(typed) == "the cup"


def test_loc_as_plain_text_has_no_token_of_its_own(tokenizer_file: Path) -> None:
    prompt = TINY_PROMPT.model_copy(update={"loc_token_id": None})
    suffix = PromptEncoder(prompt, tokenizer_file, TINY_IMAGE_TOKENS).suffix("cup")
    assert 4 not in suffix
    assert len(suffix) > len(PromptEncoder(TINY_PROMPT, tokenizer_file, TINY_IMAGE_TOKENS).suffix("cup")) - 1


@pytest.mark.parametrize(("scheme", "spaced"), [("first", False), ("always", True), ("never", False)])
def test_what_stands_behind_the_image_begins_as_the_tokenizer_has_it(
    tokenizer_file: Path, tmp_path: Path, scheme: str, spaced: bool
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    whole = tokenizer.encode("<image>find cup", add_special_tokens=False).ids[1:]
    ids = PromptEncoder(TINY_PROMPT, tmp_path / "tokenizer.json", TINY_IMAGE_TOKENS).suffix("cup")
    assert ids == [*whole, TINY_PROMPT.loc_token_id]
    assert tokenizer.id_to_token(ids[0]).startswith("\u2581") == spaced


@pytest.mark.parametrize("words", [1, 3, 6, 12])
def test_what_a_left_padded_model_reads_is_where_its_training_read(tokenizer_file: Path, words: int) -> None:
    padded = 32
    prompt = TINY_PROMPT.model_copy(update={"left_padded": padded})
    encoder = PromptEncoder(prompt, tokenizer_file, TINY_IMAGE_TOKENS)
    whole = PromptEncoder(TINY_PROMPT, tokenizer_file, TINY_IMAGE_TOKENS)
    text = " ".join(["red", "green", "cup"][n % 3] for n in range(words))
    ids = (whole.prefix + whole.suffix(text))[:padded]
    row = [None] * (padded - len(ids)) + ids
    read = row[: len(ids)][padded - len(ids) :]  # the prompt's ids up to index (ids - 1) of the padded row
    if len(read) <= len(whole.prefix):
        with pytest.raises(ExpressionError, match="too short"):
            encoder.suffix(text)
    else:
        assert encoder.prefix + encoder.suffix(text) == read


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("\ufeffthe red cup", "the red cup"),
        ("the r\u00aded cup\u200b", "the red cup"),
        ("the re\u200dd\u200c c\u2060up", "the red cup"),
        ("\u202ethe\u200f red cup\u2069", "the red cup"),
        ("\u3164the red cup\U000e0041", "the red cup"),
        ("\u2764\ufe0f\u200d\U0001f525", "\u2764\u200d\U0001f525"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u200c", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),
    ],
    ids=["mark", "hyphen", "joiners", "directions", "fillers", "emoji", "Persian", "Hindi"],
)
def test_invisible_characters_are_left_out_where_they_do_nothing(typed: str, read: str) -> None:
    assert clean_expression(typed) == read


@pytest.mark.parametrize("typed", ["\ufeff", "\u00ad\u00ad", "\u200b \u200d", "\u2066\u2069", "\u3164\uffa0"])
def test_expression_of_invisible_characters_alone_is_refused(typed: str) -> None:
    with pytest.raises(ExpressionError, match="is empty"):
        clean_expression(typed)


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
