"""mini's vocabulary: byte pairs of what scenes are called, and of answers in text."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from referent.core.grammar import BoxGrammar, PointGrammar
from referent.mini import shape as mini

BYTES = [f"<0x{value:02X}>" for value in range(256)]  # what spells a character that no expression has
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,[]<>=\"'/&;-"
ANSWERS = 2000  # in the text that the pairs are learnt from, of each form


def train_tokenizer(expressions: Iterable[str], file: Path) -> None:
    """Writes a tokenizer.json. Digits are tokens by themselves, so a number is written digit by digit."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True)])
    trainer = trainers.BpeTrainer(
        vocab_size=mini.VOCABULARY_SIZE, special_tokens=[*mini.SPECIAL_TOKENS, *BYTES],
        initial_alphabet=list(ALPHABET), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*expressions, *_answers(random.Random(7))], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    file.write_text(_without_special_bytes(tokenizer))


def _answers(rng: random.Random) -> Iterator[str]:
    """Boxes and points as the grammars write them; a label is what the expressions have already."""
    box, points = BoxGrammar(order="xyxy"), PointGrammar(decimals=1)
    for _ in range(ANSWERS):
        yield box.write([rng.random() for _ in range(4)])
        yield points.write([(rng.random(), rng.random()) for _ in range(rng.randint(1, 9))], "")


def _without_special_bytes(tokenizer: Tokenizer) -> str:
    """The trainer accepts tokens that are not in the text only as special ones. Bytes must be ordinary tokens, since a
    caller who types `<0x41>` means these six characters."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in BYTES]
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
