"""A tiny LLaVA that can spell every answer, and transformers' own forward pass under a grammar to hold it against.

Its vocabulary has digits, bytes, tags and <loc....>: Llama's and PaliGemma's in kind.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

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


def text_llava() -> LlavaForConditionalGeneration:
    """Random weights, large enough that answers depend on image, words and past; 4 image tokens of 28 x 28 pixels."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=TEXT_VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
    )  # fmt: skip
    llava = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_ID, image_token_index=IMAGE_ID)
    ).eval()
    for parameter in llava.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return llava


class Reference(NamedTuple):
    """What transformers' forward pass gives under a grammar, each decision from the whole sequence, without a cache."""

    ids: list[int]
    logprobs: list[float]  # of the decisions, over the whole vocabulary
    least_gap: float  # between the two best allowed logits


@torch.inference_mode()
def constrained_greedy(
    llava: LlavaForConditionalGeneration, pixel_values: torch.Tensor, prompt: list[int], lark: str
) -> Reference:
    """The greedy answer to one prompt (with its image tokens) about (1, 3, S, S) pixels."""
    tokenizer = text_tokenizer()
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark))
    ids: list[int] = []
    logprobs, gaps = [], [float("inf")]
    while True:
        forced = matcher.compute_ff_tokens()
        matcher.consume_tokens(forced)
        ids += forced
        if matcher.is_stopped():
            break
        logits = llava(input_ids=torch.tensor([prompt + ids]), pixel_values=pixel_values).logits[0, -1]
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(TEXT_VOCABULARY) if mask[i // 8] >> (i % 8) & 1]
        best, *others = sorted(logits[allowed].tolist(), reverse=True)
        gaps += [best - others[0]] if others else []
        token = allowed[int(logits[allowed].argmax())]
        logprobs.append(float(logits.log_softmax(-1)[token]))
        matcher.consume_token(token)
        if token != EOS_ID:
            ids.append(token)
        if matcher.is_stopped():
            break
    return Reference(ids, logprobs, min(gaps))
