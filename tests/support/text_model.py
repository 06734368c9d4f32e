"""A tiny LLaVA that answers in text, and transformers' own forward pass under a grammar to hold it against."""

import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from llguidance import LLMatcher
from peft import get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from referent.core.grammar import BoxGrammar, DetectionGrammar, Generation, Grammar, PointGrammar
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.core.transform import ImageTransform
from referent.generation.engine import DecoderRow, Engine, WrittenAnswer
from referent.modeling.checkpoint import CheckpointSpec, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.llava import lora_config
from tests.support.text_tokenizer import (
    BOS_ID,
    EOS_ID,
    FIRST_LOC_ID,
    IMAGE_ID,
    PAD_ID,
    TEXT_VOCABULARY,
    text_tokenizer,
    write_text_tokenizer,
)

LEAST_GAP = 1e-4  # two tokens closer than that may change places with the order of additions
GRAMMARS: list[Grammar] = [
    BoxGrammar(order="cxcywh", lead=" "),
    BoxGrammar(order="xyxy", decimals=3, none=True),
    PointGrammar(none=True),
    DetectionGrammar(first_loc_id=FIRST_LOC_ID, none=True),
]


def save_text_checkpoint(directory: Path, grammar: Grammar) -> Path:
    """The tiny LLaVA with an adapter that matters, as a checkpoint of kind `generator`."""
    tokenizer = directory / "tokenizer.json"
    directory.mkdir(parents=True, exist_ok=True)
    write_text_tokenizer(tokenizer)
    model = GroundingModel(text_llava(), None).eval()
    prompt = Prompt(
        template="<image>find {expression}:", bos_token_id=BOS_ID, pad_token_id=PAD_ID, image_token_id=IMAGE_ID,
        loc_token_id=None,
    )  # fmt: skip
    spec = CheckpointSpec(
        kind="generator", image=ImageTransform(mode="letterbox", size=28), image_tokens=4, box_frame="transformed",
        prompt=prompt, buckets=(Bucket(32, 1), Bucket(96, 4)), present_threshold=None, base="base",
        generation=Generation(grammar=grammar, eos_token_id=EOS_ID, max_instances=3),
    )  # fmt: skip
    save_checkpoint(directory, model, spec, tokenizer)
    model.llava = get_peft_model(model.llava, lora_config([]))
    for parameter in model.llava.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(directory, model, spec.model_copy(update={"base": str(directory / "base")}), tokenizer)
    return directory


def text_llava() -> LlavaForConditionalGeneration:
    """Random weights, large enough that answers depend on image, words and past; 4 image tokens of 28 x 28 pixels."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=TEXT_VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
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


class Case(NamedTuple):
    """An image with one to three questions, and what transformers writes."""

    prefix: list[int]
    pixels: torch.Tensor  # (1, S, S, 3) uint8
    suffixes: list[list[int]]
    larks: list[str]
    references: list[Reference]


def make_cases(model: GroundingModel, count: int) -> list[Case]:
    """Random images and prompts, the grammars in turn."""
    generator = random.Random(0)
    found = []
    for index in range(count):
        pixels = torch.from_numpy(np.random.default_rng(index).integers(0, 256, (1, 28, 28, 3), np.uint8))
        normalised = (pixels.permute(0, 3, 1, 2) - model.mean) / model.std
        prefix = [BOS_ID, *generator.choices(range(5, 300), k=generator.randint(0, 3)), *[IMAGE_ID] * 4]
        suffixes = [generator.choices(range(5, 300), k=generator.randint(1, 9)) for _ in range(generator.randint(1, 3))]
        larks = [GRAMMARS[index % len(GRAMMARS)].lark("the <red> cup", 3) for _ in suffixes]
        references = [
            constrained_greedy(model.base, normalised, prefix + suffix, lark)
            for suffix, lark in zip(suffixes, larks, strict=True)
        ]
        found.append(Case(prefix, pixels, suffixes, larks, references))
    return found


def rows_of(model: GroundingModel, case: Case, packed: bool) -> list[DecoderRow]:
    """All questions of a case in one row, or each in its own."""
    features = model.encode_image(case.pixels).detach()
    answers = [WrittenAnswer(text_tokenizer(), *pair) for pair in zip(case.larks, case.suffixes, strict=True)]
    groups = [answers] if packed else [[answer] for answer in answers]
    return [DecoderRow(case.prefix, features, group, job=case) for group in groups]


def write_joining(engine: Engine, rows: list[DecoderRow]) -> int:
    """Answers all rows, one more joining before each pass; returns how many were written at once at most."""
    waiting, most = list(rows), 0
    while waiting or engine.active:
        if waiting and not engine.full:
            engine.admit(waiting.pop(0))
        most = max(most, len(engine.active))
        engine.step()
    assert not engine.errors
    return most


def assert_as_reference(rows: list[DecoderRow], cases: list[Case]) -> None:
    """Ids equal, and log-probabilities within 1e-4; answers with a decision too close to call are counted and left."""
    skipped = 0
    for case in cases:
        answers = [answer for row in rows if row.job is case for answer in row.answers]
        for answer, reference in zip(answers, case.references, strict=True):
            if reference.least_gap < LEAST_GAP:
                skipped += 1
                continue
            assert answer.finish_reason == "stop"
            assert answer.ids == reference.ids
            found = [decision.logprob + decision.mass for decision in answer.decisions]
            np.testing.assert_allclose(found, reference.logprobs, atol=1e-4)
    assert skipped <= len(cases) / 10
