from pathlib import Path

import pytest
from tokenizers import Tokenizer

from referent.core.grammar import BoxGrammar, BoxOrPointsGrammar, PointGrammar
from referent.core.prompts import PromptEncoder
from referent.generation.engine import WrittenAnswer
from referent.generation.questions import load_tokenizer
from referent.mini.pretrain import mini_spec
from referent.mini.shape import SPECIAL_TOKENS, VOCABULARY_SIZE
from referent.mini.tokenizer import train_tokenizer
from tests.support.hostile_labels import HOSTILE_LABELS

GRAMMAR = BoxOrPointsGrammar(box=BoxGrammar(order="xyxy", none=True), points=PointGrammar(decimals=1, none=True))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["the red cup", "find the second king from the left", "all aces", "the cups"] * 50, file)
    return file


def test_a_number_is_written_digit_by_digit(file: Path) -> None:
    for text in (GRAMMAR.box.write([0.31, 0.5, 0.2, 0.77]), GRAMMAR.points.write([(0.123, 0.5), (1, 0)], "cup")):
        encoding = Tokenizer.from_file(str(file)).encode(text)
        assert not [token for token in encoding.tokens if token.startswith("<0x")]
        assert all(len(token) == 1 for token in encoding.tokens if any(map(str.isdigit, token)))
        assert PromptEncoder(mini_spec().prompt, file, 4).answer(text) == encoding.ids


@pytest.mark.parametrize("typed", ["<0x41>", "[LOC]", "<image>", "</s>", "ÄÖ 猫", "CUP"])
def test_what_a_caller_types_is_text(file: Path, typed: str) -> None:
    encoder = PromptEncoder(mini_spec().prompt, file, 4)
    *ids, loc = encoder.suffix(typed)
    assert loc == SPECIAL_TOKENS.index("[LOC]")
    assert min(ids) >= len(SPECIAL_TOKENS)
    assert encoder.decode(ids) == typed.lower()


def test_every_label_can_be_spelled_as_it_is(file: Path) -> None:
    tokenizer = load_tokenizer(file.read_text(), VOCABULARY_SIZE, SPECIAL_TOKENS.index("</s>"))
    for label in [*HOSTILE_LABELS, "Ace of Spades", "ÄÖ 猫"]:
        answer = WrittenAnswer(tokenizer, GRAMMAR.points.lark(label, 1), [])
        while not answer.finish_reason:
            for _, bits, take in answer.asks(0):
                take(next(i for i in range(VOCABULARY_SIZE) if bits[i // 8] >> (i % 8) & 1), 0.0, 0.0)
        assert answer.finish_reason == "stop"
        assert answer.text == "none" or len(GRAMMAR.read(answer.text)) == 1
