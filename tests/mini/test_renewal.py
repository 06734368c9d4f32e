from pathlib import Path

import torch
from tokenizers import Tokenizer

from referent.mini import shape
from referent.mini.renewal import translate
from referent.mini.tokenizer import train_tokenizer
from referent.modeling.stem import ConvStemLlava


def test_a_model_is_translated_to_another_vocabulary(tmp_path: Path) -> None:
    for name, words in (("old", ["dog", "cat"]), ("new", ["dog", "catdog " * 50])):
        train_tokenizer(words, tmp_path / name)
    old, new = (Tokenizer.from_file(str(tmp_path / name)) for name in ("old", "new"))
    torch.manual_seed(0)
    before = ConvStemLlava(shape.mini_config())
    after = translate(before, old, new)
    rows, translated = (llava.lm_head.weight for llava in (before, after))
    for token in ("[LOC]", "<s>", "d"):
        assert torch.equal(translated[new.token_to_id(token)], rows[old.token_to_id(token)])
    assert old.token_to_id("▁catdog") is None
    pieces = [piece.id for piece in old.model.tokenize("▁catdog")]
    torch.testing.assert_close(translated[new.token_to_id("▁catdog")], rows[pieces].mean(0))
    assert after.model.language_model.embed_tokens.weight is after.lm_head.weight
    left = {name: weight for name, weight in before.named_parameters() if "embed_tokens" not in name}
    assert all(torch.equal(dict(after.named_parameters())[name], weight) for name, weight in left.items())
