from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers.models.clip import CLIPImageProcessorPil

from referent.modeling.checkpoint import CheckpointError, load_checkpoint, load_checkpoint_encoder
from referent.modeling.decoder import visible
from referent.modeling.grounder import HeadGrounder
from referent.modeling.heads import BoxHead

EXPRESSIONS = ["the red cup", "cup", "the green plate on the left", "blue"]


@pytest.fixture(scope="module")
def grounder(tiny_checkpoint: Path) -> HeadGrounder:
    model, spec = load_checkpoint(tiny_checkpoint)
    return HeadGrounder(model, spec, load_checkpoint_encoder(tiny_checkpoint, spec))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def test_packed_expressions_get_the_boxes_that_they_get_alone(grounder: HeadGrounder, image: Image.Image) -> None:
    together = grounder.ground(image, EXPRESSIONS)
    alone = [grounder.ground(image, [expression])[0] for expression in EXPRESSIONS]
    for packed, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(
            packed.box_cxcywh_normalized, single.box_cxcywh_normalized, atol=1e-5, err_msg=packed.expression
        )
        assert packed.score == pytest.approx(single.score, abs=1e-5)
    assert len({result.box_xyxy for result in together}) == len(EXPRESSIONS)  # the words matter


def test_the_packed_pass_is_llavas_own_pass(tiny_checkpoint: Path) -> None:
    """Hidden state at [LOC] of one expression: ours against transformers' LlavaForConditionalGeneration."""
    model, spec = load_checkpoint(tiny_checkpoint)
    encoder = load_checkpoint_encoder(tiny_checkpoint, spec)
    ids = torch.tensor([encoder.prefix + encoder.suffix("the red cup on the left")])
    pixels = torch.randint(0, 256, (1, 28, 28, 3)).to(torch.uint8)
    with torch.inference_mode():
        hidden, _ = model.read_expressions(
            ids,
            torch.tensor([[0] * len(encoder.prefix) + [1] * (ids.shape[1] - len(encoder.prefix))]),
            torch.tensor([[ids.shape[1] - 1]]),
            model.encode_image(pixels),
        )
        clip = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
        normalised = clip(images=Image.fromarray(pixels[0].numpy()), return_tensors="pt")["pixel_values"]
        theirs = model.base.model(input_ids=ids, pixel_values=normalised).last_hidden_state
    torch.testing.assert_close(hidden[:, 0], theirs[:, -1], atol=1e-4, rtol=1e-4)


def test_a_token_sees_the_prefix_and_its_own_segment_only() -> None:
    mask = visible(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_ids_out_of_range_do_not_raise(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    wild = torch.tensor([[2, 3, 3, 3, 3, 3, 3, 3, 10**9, -5, 4]])
    boxes, *_ = model(
        torch.zeros(1, 28, 28, 3, dtype=torch.uint8), wild, torch.zeros_like(wild), torch.tensor([[10**6, -7]])
    )
    assert torch.isfinite(boxes).all()


@pytest.mark.parametrize(("hidden_size", "widths"), [(4096, (512, 256)), (5120, (640, 320)), (256, (256, 256))])
def test_head_has_the_published_shape(hidden_size: int, widths: tuple[int, int]) -> None:
    linear = [layer for layer in BoxHead(hidden_size, scores=False).mlp if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (hidden_size, widths[0]),
        widths,
        (widths[1], 4),
    ]
    if hidden_size == 4096:
        assert sum(p.numel() for layer in linear for p in layer.parameters()) == 2_230_020


def test_adapter_touches_the_language_model_alone(tiny_checkpoint: Path) -> None:
    model, _ = load_checkpoint(tiny_checkpoint, trainable=True)
    assert isinstance(model.llava, PeftModel)
    trained = [name for name, parameter in model.llava.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 3 * 2 + 1  # A and B of q, k, v in two layers, and [LOC]
    assert all("language_model" in name for name in trained)


def test_a_directory_without_spec_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no referent\.json"):
        load_checkpoint(tmp_path)
