"""Prompts: a template and a tokenizer turn an expression into the ids around and after the image.

The template has `<image>`, then `{expression}`, then `[LOC]`: what stands before and including the image is the
prefix, shared by all expressions of an image; the rest is an expression's suffix, whose last token's hidden state
becomes its box.
"""

import unicodedata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator
from tokenizers import Tokenizer

IMAGE_MARK, EXPRESSION_MARK, LOC_MARK = "<image>", "{expression}", "[LOC]"
MAX_EXPRESSION_CHARACTERS = 1000


class ExpressionError(ValueError):
    """An expression is empty, too long, or has control characters."""


class Prompt(BaseModel):
    """The template and the ids of the special tokens. Travels with the model (checkpoint and bundle).

    `loc_token_id` is None where [LOC] is plain text in pieces, as visual-grounding-api trained it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    bos_token_id: int | None
    pad_token_id: int
    image_token_id: int
    loc_token_id: int | None

    @field_validator("template")
    @classmethod
    def _has_marks(cls, template: str) -> str:
        counts = [template.count(mark) for mark in (IMAGE_MARK, EXPRESSION_MARK, LOC_MARK)]
        if counts != [1, 1, 1] or not template.endswith(LOC_MARK):
            raise ValueError(
                f"template {template!r} must hold {IMAGE_MARK}, {EXPRESSION_MARK} once and end with {LOC_MARK}"
            )
        if template.index(IMAGE_MARK) > template.index(EXPRESSION_MARK):
            raise ValueError(f"template {template!r} must have {IMAGE_MARK} before {EXPRESSION_MARK}")
        return template


class PromptEncoder:
    """Encodes prompts with the tokenizer of one model; special tokens that a caller types stay text."""

    def __init__(self, prompt: Prompt, tokenizer_file: Path, image_tokens: int) -> None:
        self.prompt = prompt
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.encode_special_tokens = True
        before, after = prompt.template.split(IMAGE_MARK)
        self._suffix_template = after if prompt.loc_token_id is None else after.removesuffix(LOC_MARK)
        bos = [] if prompt.bos_token_id is None else [prompt.bos_token_id]
        self.prefix = bos + self._encode(before) + [prompt.image_token_id] * image_tokens

    def suffix(self, expression: str) -> list[int]:
        """Ids of one expression's suffix, ending in its [LOC]. Raises `ExpressionError`."""
        ids = self._encode(self._suffix_template.replace(EXPRESSION_MARK, clean_expression(expression)))
        return ids if self.prompt.loc_token_id is None else [*ids, self.prompt.loc_token_id]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []


def clean_expression(expression: str) -> str:
    """One line of NFC text without surplus white space. Raises `ExpressionError`."""
    if len(expression) > MAX_EXPRESSION_CHARACTERS:  # first: normalising combining marks takes their number squared
        raise ExpressionError(
            f"the expression has {len(expression)} characters; the limit is {MAX_EXPRESSION_CHARACTERS}"
        )
    text = " ".join(unicodedata.normalize("NFC", expression).split())
    if not text:
        raise ExpressionError("the expression is empty: say what to look for, such as 'the red cup'")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ExpressionError(f"the expression {text[:40]!r} has control characters: send plain text")
    return text
