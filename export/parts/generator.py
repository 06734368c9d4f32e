"""The two parts of a model of kind `generator`. The second is one graph that both prefills and decodes."""

from pathlib import Path

import torch

from export.graphs import Part, Tensors
from export.parts.vision import example_pictures, vision_part
from referent.core.bundle import TOKENIZER_FILE
from referent.core.contract import IMAGE_FEATURES, INPUT_IDS, VISION_ENCODER, Step, Tensor
from referent.core.grammar import GENERATION_FILE, GenerationFile
from referent.core.packing import Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.generation.questions import columns_of
from referent.kinds.generator import GENERATOR, generation_of
from referent.modeling.grounding import GroundingModel
from referent.modeling.text_decoder import TextDecoder

RANGES = {"logprob": 4.0, "mass": 4.0}  # nats, from a probability of 1 to about a fiftieth
JUDGED = "logprob"  # what scores are made of
RANKED: frozenset[str] = frozenset()
LARGE = frozenset({VISION_ENCODER.suffix, GENERATOR.suffix})
DECODED_TOKENS, PAST = 6, 9  # of the examples that decode


def split(model: GroundingModel) -> tuple[Part, ...]:
    """The vision encoder and the decoder's graph, sharing the model's weights."""
    step = decoder_step(model)
    return vision_part(model), Part(step, TextDecoder(model), step.outputs)


def decoder_step(model: GroundingModel) -> Step:
    """The tensors of the decoder's graph (`referent.modeling.text_decoder`), which the loop in the backend feeds.

    P past tokens, C = P + T, F image features (one, where no image is among the new tokens).
    """
    heads, head_dim = _cache_shape(model)
    allowed = str(_bytes(len(model.base.lm_head.weight)))
    caches = [f"{kind}_{i}" for i in range(len(model.base.model.language_model.layers)) for kind in ("key", "value")]
    inputs = (
        INPUT_IDS,
        Tensor(IMAGE_FEATURES.name, None, ("F", "D")),
        Tensor("position_ids", "INT64", ("T",)),
        Tensor("mask", "BOOL", ("T", "C")),
        Tensor("select", "INT64", ("N",)),
        Tensor("allowed", "UINT8", ("N", allowed)),
        *(Tensor(name, None, (str(heads), "P", str(head_dim))) for name in caches),
    )
    outputs = (
        Tensor("token", "INT64", ("N",)),
        Tensor("logprob", "FP32", ("N",)),
        Tensor("mass", "FP32", ("N",)),
        *(Tensor(f"new_{name}", None, (str(heads), "T", str(head_dim))) for name in caches),
    )
    return Step(GENERATOR.suffix, inputs, outputs)


def example_inputs(model: GroundingModel, spec: ModelSpec, batch: int, bucket: Bucket, seed: int = 0) -> Tensors:
    """Random but well-formed inputs of the encoder and the decoder's graph: a prefill of a full bucket for an even
    seed, a pass over a random past for an odd one."""
    generator = torch.Generator().manual_seed(seed)
    heads, head_dim = _cache_shape(model)
    vocabulary, slots = len(model.base.lm_head.weight), max(2, bucket.expressions)
    tokens, past = (DECODED_TOKENS, PAST) if seed % 2 else (bucket.tokens, 0)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    input_ids = whole(vocabulary, batch, tokens)
    input_ids[input_ids == spec.prompt.image_token_id] = spec.prompt.pad_token_id
    if not past:
        input_ids[:, 1 : 1 + spec.image_tokens] = spec.prompt.image_token_id
    mask = whole(2, batch, tokens, past + tokens).bool()
    mask[..., past:] &= torch.ones(tokens, tokens).tril().bool()
    mask[..., past:] |= torch.eye(tokens).bool()  # a token sees itself
    allowed = whole(256, batch, slots, _bytes(vocabulary))
    allowed[:, 1::2] &= whole(256, *allowed[:, 1::2].shape) & whole(
        256, *allowed[:, 1::2].shape
    )  # so that mass differs
    inputs = {
        **example_pictures(spec, batch, generator),
        INPUT_IDS.name: input_ids,
        "position_ids": past + torch.arange(tokens).expand(batch, -1).contiguous(),
        "mask": mask,
        "select": whole(tokens, batch, slots),
        "allowed": allowed.to(torch.uint8),
    }
    for tensor in decoder_step(model).inputs:
        if "P" in tensor.shape:
            inputs[tensor.name] = torch.randn(batch, heads, past, head_dim, generator=generator)
    return inputs


def add_files(directory: Path, spec: ModelSpec, encoder: PromptEncoder, max_batch_size: int) -> None:
    """Beside the decoder's graph: how it is to write, and its tokenizer."""
    folder = directory / GENERATOR.suffix
    settings = GenerationFile(**generation_of(spec).model_dump(), slots=max_batch_size, columns=columns_of(spec))
    (folder / GENERATION_FILE).write_text(settings.model_dump_json(indent=2) + "\n", "utf-8")
    (folder / TOKENIZER_FILE).write_text(encoder.tokenizer_json, "utf-8")


def _bytes(vocabulary: int) -> int:
    """That hold a bit for each token."""
    return -(-vocabulary // 8)


def _cache_shape(model: GroundingModel) -> tuple[int, int]:
    """Heads and width of a layer's keys and values."""
    text = model.base.config.text_config
    return text.num_key_value_heads, model.base.model.language_model.layers[0].self_attn.head_dim
