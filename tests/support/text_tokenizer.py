"""A small vocabulary that can spell every answer: digits, bytes, tags, <loc....>; Llama's and PaliGemma's in kind."""

import tempfile
from functools import cache
from pathlib import Path

from llguidance import LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

SPECIAL_TOKENS = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
PAD_ID, BOS_ID, EOS_ID, IMAGE_ID = 0, 2, 3, 4
PIECES = [
    "▁", *"0123456789", *".,[]<>=\"/&;:", *"abcdefghijklmnopqrstuvwxyz",
    "▁[", "po", "in", "ts", "nt", "int", "point", "points", "▁a", "al", "alt", "▁x", "▁y", "no", "ne", "none",
    "cu", "cup", "▁cup", "re", "red", "▁the", "th", "the", "fi", "nd", "find",
]  # fmt: skip
BYTES = [f"<0x{value:02X}>" for value in range(256)]
LOCS = [f"<loc{value:04d}>" for value in range(1024)]
TOKENS = [*SPECIAL_TOKENS, *BYTES, *PIECES, *LOCS]
FIRST_LOC_ID = TOKENS.index(LOCS[0])
TEXT_VOCABULARY = 1408  # rows of the embedding: some are spare


def write_text_tokenizer(file: Path) -> None:
    """A tokenizer.json in the way that LLaMA's is made of its sentencepiece model."""
    ids = {token: index for index, token in enumerate(TOKENS)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in PIECES
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in LOCS])
    tokenizer.save(str(file))


@cache
def text_tokenizer() -> LLTokenizer:
    """The same for grammars."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        write_text_tokenizer(file)
        return LLTokenizer(str(file), n_vocab=TEXT_VOCABULARY, eos_token=EOS_ID)
