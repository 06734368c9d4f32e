"""Any LLaVA directory as a base."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tokenizers import Tokenizer, models
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.clip import CLIPImageProcessorPil

from referent.core.prompts import Prompt, PromptEncoder
from referent.core.transform import ImageTransform
from referent.modeling.checkpoint import CheckpointError
from referent.modeling.llava import TEMPLATES, convert_sentencepiece, llava_spec, llava_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """LLaVA-1.5-7B's sizes, as its config says them."""
    vision = CLIPVisionConfig(image_size=336, patch_size=14)
    LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(vocab_size=32064),
        image_token_index=32000,
        vision_feature_layer=-2,
        pad_token_id=32001,
    ).save_pretrained(tmp_path)
    return tmp_path


def tokenizer_of(size: int) -> Tokenizer:
    return Tokenizer(models.BPE({str(index): index for index in range(size)}, []))


def test_a_7b_directory_gets_a_letterbox_and_a_spare_row_for_loc(directory: Path) -> None:
    spec = llava_spec(directory, tokenizer_of(32000))
    assert (spec.image.mode, spec.image.size, spec.image_tokens, spec.box_frame) == (
        "letterbox",
        336,
        576,
        "transformed",
    )
    assert (spec.prompt.bos_token_id, spec.prompt.image_token_id, spec.prompt.loc_token_id) == (1, 32000, 32002)
    assert [bucket.expressions for bucket in spec.buckets] == [1, 4, 8, 16]
    assert spec.buckets[0].tokens > 577 + 20


def test_the_published_way_is_an_option(directory: Path) -> None:
    spec = llava_spec(directory, tokenizer_of(32000), center_crop=True, plain_text_loc=True)
    assert (spec.image.mode, spec.box_frame, spec.prompt.loc_token_id) == ("center_crop", "image", None)
    assert spec.prompt.template == "<image>\nFind the object referred to: {expression} [LOC]"
    text = llava_spec(directory, tokenizer_of(32000), template="vg-text", kind="generator")
    assert text.prompt.template == TEMPLATES["vg-text"]
    assert not text.prompt.reads_loc


def test_a_full_vocabulary_has_no_row_for_loc(directory: Path) -> None:
    with pytest.raises(CheckpointError, match="--plain-text-loc"):
        llava_spec(directory, tokenizer_of(32064))


def test_a_directory_without_tokenizer_is_refused(directory: Path) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        llava_tokenizer(directory)


def test_the_golden_prompt_gets_its_ids(data_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    convert_sentencepiece(data_folder / "formats/llama_tokenizer/tokenizer.model").save(str(file))
    golden = json.loads((data_folder / "formats/llava_golden/llava-1_5-7b.json").read_text())["input_ids"]
    prompt = Prompt(
        template="USER: <image>\n{expression} ASSISTANT:", bos_token_id=1, pad_token_id=32001, image_token_id=32000,
        loc_token_id=None,
    )  # fmt: skip
    encoder = PromptEncoder(prompt, file, 576)
    assert len(golden) == 595
    assert encoder.prefix + encoder.suffix("What is shown in this image?") == golden


def test_converted_tokenizers_are_sentencepieces_own(data_folder: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    file = data_folder / "formats/llama_tokenizer/tokenizer.model"
    ours, theirs = convert_sentencepiece(file), SentencePieceProcessor(model_file=str(file))
    lines = (data_folder / "formats/refcoco/refcoco_val.jsonl").read_text().splitlines()
    texts = [" ".join(json.loads(line)["text"].split()) for line in lines] + [
        "héllo 日本語 🎉",
        "[0.512, 0.300, 1.000]",
    ]
    assert len(texts) > 3800
    assert [ours.encode(text, add_special_tokens=False).ids for text in texts] == theirs.encode(texts)
    assert all(ours.decode(theirs.encode(text)) == text for text in texts)


@pytest.mark.parametrize("size", [(480, 301), (211, 337), (336, 336), (500, 375), (641, 427), (20, 33), (1000, 50)])
def test_the_centre_crop_is_clips_own(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).filter(ImageFilter.BoxBlur(2))
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_rescale=False, do_normalize=False
    )
    theirs = clip(images=image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = ImageTransform(mode="center_crop", size=336).apply(image)
    assert np.abs(ours.astype(int) - theirs).max() <= 2  # of 255; Pillow rounds the corners of a part of an image
