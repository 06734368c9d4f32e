"""Prompts: a template and a tokenizer turn an expression into the ids around and after the image.

The template has `<image>`, then `{expression}`, then `[LOC]`. Everything up to and including the image is the prefix,
which all expressions of an image share. The rest is an expression's suffix; the box is computed from the hidden state
of its last token. The template of a model that answers in text may end without [LOC]; its answer follows the suffix.
"""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, model_validator
from tokenizers import Tokenizer, decoders, pre_tokenizers

IMAGE_MARK, EXPRESSION_MARK, LOC_MARK = "<image>", "{expression}", "[LOC]"
MAX_EXPRESSION_CHARACTERS = 1000
# Unicode's "default ignorable": byte order mark, soft hyphen, zero-width space, marks of direction, fillers
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# joiners too, where they join nothing; they do between letters from Arabic to Khmer, and between pictures
JOINED = "[\u0600-\u109f\u1780-\u1cff\u2190-\u2bff\ua8e0-\uabff\U00010a00-\U00011fff\U0001f000-\U0001faff]"
STRAY_JOINER = re.compile(f"(?<!{JOINED})[\u200c\u200d]|[\u200c\u200d](?!{JOINED})")
PLACE = re.compile(r"<(loc|seg)\d+>")  # tokens of PaliGemma that only a model writes; they are not marked as special
SPACE = "\u2581"  # stands for a space in tokenizers


class ExpressionError(ValueError):
    """An expression is empty, too long, or has control characters."""


class Prompt(BaseModel):
    """The template and the ids of the special tokens. Travels with the model (checkpoint and bundle).

    `bos_behind_image`: the beginning token comes after the image, as in PaliGemma, so each suffix starts with it.
    `loc_token_id` is None if [LOC] is ordinary text of several tokens, as visual-grounding-api trained it.
    `left_padded` is for models whose training padded or cut prompts on the left to so many ids, but then read the row
    at index (ids of the prompt - 1), as if the padding were on the right: a token before the prompt's last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    bos_token_id: int | None
    pad_token_id: int
    image_token_id: int
    loc_token_id: int | None
    left_padded: int | None = None
    bos_behind_image: bool = False

    @model_validator(mode="after")
    def _has_marks(self) -> "Prompt":
        template = self.template
        counts = [template.count(mark) for mark in (IMAGE_MARK, EXPRESSION_MARK, LOC_MARK)]
        if counts[:2] != [1, 1] or counts[2] != self.reads_loc:
            raise ValueError(
                f"template {template!r} must hold {IMAGE_MARK}, {EXPRESSION_MARK} once, {LOC_MARK} at its end or not"
            )
        if template.index(IMAGE_MARK) > template.index(EXPRESSION_MARK):
            raise ValueError(f"template {template!r} must have {IMAGE_MARK} before {EXPRESSION_MARK}")
        if self.loc_token_id is not None and not self.reads_loc:
            raise ValueError(f"template {template!r} must end with {LOC_MARK}, token {self.loc_token_id}")
        return self

    @property
    def reads_loc(self) -> bool:
        """Whether the suffix ends in [LOC], as a box head needs it."""
        return self.template.endswith(LOC_MARK)


class PromptEncoder:
    """Encodes prompts with the tokenizer of one model; special tokens and places in a caller's text are encoded as
    plain text."""

    def __init__(self, prompt: Prompt, tokenizer_file: Path, image_tokens: int) -> None:
        self.prompt = prompt
        self._file = tokenizer_file
        self._tokenizer = _with_decoder(tokenizer_file)
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_added_tokens_decoder().values()
        places = [token.content for token in vocabulary if PLACE.fullmatch(token.content)]
        self._tokenizer.add_special_tokens(places)  # they keep their ids, and a caller's text can't name them any more
        self._behind_image = self._tokenizer
        words = self._tokenizer.pre_tokenizer
        if isinstance(words, pre_tokenizers.Metaspace) and words.prepend_scheme == "first":  # a space before all text
            self._behind_image = Tokenizer.from_str(self._tokenizer.to_str())
            self._behind_image.encode_special_tokens = True
            self._behind_image.pre_tokenizer = pre_tokenizers.Metaspace(words.replacement, "never", words.split)
        before, after = prompt.template.split(IMAGE_MARK)
        self._suffix_template = after if prompt.loc_token_id is None else after.removesuffix(LOC_MARK)
        bos = [] if prompt.bos_token_id is None else [prompt.bos_token_id]
        self._suffix_start = bos if prompt.bos_behind_image else []
        start = [] if prompt.bos_behind_image else bos
        self.prefix = start + _ids(self._tokenizer, before) + [prompt.image_token_id] * image_tokens

    def suffix(self, expression: str, template: str | None = None) -> list[int]:
        """Ids of one expression's suffix; the last is [LOC] or the token read instead. Training may give another
        `template`. Raises `ExpressionError`."""
        words = self._suffix_template if template is None else template.split(IMAGE_MARK)[1]
        text = words.replace(EXPRESSION_MARK, clean_expression(expression))
        ids = self._suffix_start + _ids(self._behind_image, text)
        if self.prompt.loc_token_id is not None:
            ids.append(self.prompt.loc_token_id)
        if (padded := self.prompt.left_padded) is None:
            return ids
        kept = min(len(self.prefix) + len(ids), padded)
        # index kept - 1 of the row is read; the row begins with padded - kept ids of padding. Later ids have no effect
        read = 2 * kept - padded - len(self.prefix)
        if read < 1:
            raise ExpressionError(f"the expression {expression[:40]!r} is too short for this model: use more words")
        return ids[:read]

    def words(self, text: str, behind_image: bool = False) -> list[int]:
        """Ids of any text, which may come right after the image; special tokens in it are encoded as plain text."""
        return _ids(self._behind_image if behind_image else self._tokenizer, text)

    def answer(self, text: str) -> list[int]:
        """Ids of an answer in text, without an end token; the tokenizer itself puts the space before it.

        Raises ValueError where the tokenizer cannot spell it.
        """
        text = text.strip()
        ids = _ids(self._tokenizer, text)
        if (spelled := self.decode(ids)) != text:
            raise ValueError(
                f"the tokenizer cannot spell {text!r}: it makes {spelled!r} of it; boxes as text need a base whose "
                "vocabulary has digits, brackets, comma and full stop"
            )
        return ids

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer's JSON with a decoder, as grammars need it: read anew, since here places are special tokens."""
        return str(_with_decoder(self._file).to_str())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; special tokens are left out."""
        return self._tokenizer.decode(list(ids)).strip()


def _with_decoder(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    if tokenizer.decoder is None:  # mini's file has none
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids) if text else []


def clean_expression(expression: str) -> str:
    """One line of NFC text without surplus white space and invisible characters. Raises `ExpressionError`."""
    if len(expression) > MAX_EXPRESSION_CHARACTERS:  # first: the time to normalise combining marks is quadratic
        raise ExpressionError(
            f"the expression has {len(expression)} characters; the limit is {MAX_EXPRESSION_CHARACTERS}"
        )
    visible = STRAY_JOINER.sub("", INVISIBLE.sub("", expression)).replace(SPACE, " ")
    text = " ".join(unicodedata.normalize("NFC", visible).split())
    if not text:
        raise ExpressionError("the expression is empty: say what to look for, such as 'the red cup'")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ExpressionError(f"the expression {text[:40]!r} has control characters: send plain text")
    return text
