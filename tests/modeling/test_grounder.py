from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
from PIL import Image

from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint, load_checkpoint_encoder, load_checkpoint_spec
from referent.modeling.grounder import HeadGrounder, ReferentGrounder, TextGrounder, load_grounder
from referent.modeling.vpp import DETECTOR_IMAGE
from tests.support.several import save_referents_checkpoint
from tests.support.tiny import TINY_GENERATION, TINY_PROMPT
from tests.support.visual_prompts import TINY_SHAPE

EXPRESSIONS = [["the red cup", "cup"], ["blue", "the plate on the left", "green", "red", "the cup"], ["plate"]]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = ((40, 60), (50, 20), (28, 28))
    return [Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes]


@pytest.fixture(scope="module")
def text_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, asked in words."""
    folder = tmp_path_factory.mktemp("text") / "checkpoint"
    copytree(tiny_checkpoint, folder, ignore=ignore_patterns("head.safetensors", "base"))
    spec = load_checkpoint_spec(tiny_checkpoint)
    (folder / "referent.json").write_text(
        spec.model_copy(update={"kind": "generator", "generation": TINY_GENERATION}).model_dump_json()
    )
    return folder


def test_several_images_a_pass_get_what_each_gets_alone(tiny_checkpoint: Path, images: list[Image.Image]) -> None:
    grounder = load_grounder(tiny_checkpoint, device="cpu")
    assert isinstance(grounder, HeadGrounder)
    together = grounder.ground_batch(images, EXPRESSIONS)
    for image, expressions, found in zip(images, EXPRESSIONS, together, strict=True):
        alone = grounder.ground(image, expressions)
        assert [result.expression for result in found] == expressions
        np.testing.assert_allclose([r.box_xyxy for r in found], [r.box_xyxy for r in alone], atol=1e-3)
        np.testing.assert_allclose([r.score for r in found], [r.score for r in alone], atol=1e-5)


def test_loading_merges_the_adapter(tiny_checkpoint: Path, images: list[Image.Image]) -> None:
    model, spec = load_checkpoint(tiny_checkpoint)
    adapted = HeadGrounder(model, spec, load_checkpoint_encoder(tiny_checkpoint, spec))
    merged = load_grounder(tiny_checkpoint, device="cpu")
    for a, b in zip(adapted.ground(images[0], ["cup"]), merged.ground(images[0], ["cup"]), strict=True):
        np.testing.assert_allclose(a.box_xyxy, b.box_xyxy, atol=1e-2)


def test_every_referent_is_the_same_alone_and_together(
    tiny_checkpoint: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    save_referents_checkpoint(tiny_checkpoint, tmp_path / "referents")
    grounder = load_grounder(tmp_path / "referents", device="cpu")
    assert isinstance(grounder, ReferentGrounder)
    together = grounder.ground_batch(images, EXPRESSIONS)
    for image, expressions, found in zip(images, EXPRESSIONS, together, strict=True):
        for expression, answer in zip(expressions, found, strict=True):
            (alone,) = grounder.ground(image, [expression])
            assert len(answer.referents) == len(alone.referents)
            for one, other in zip(answer.referents, alone.referents, strict=True):
                np.testing.assert_allclose(one.box_xyxy, other.box_xyxy, atol=1e-3)
                assert one.score == pytest.approx(other.score, abs=1e-5)
    assert any(len(answer.referents) > 1 for found in together for answer in found)


def test_nothing_is_named_below_a_threshold(tiny_checkpoint: Path, tmp_path: Path, images: list[Image.Image]) -> None:
    for name in ("present_threshold", "referent_threshold"):
        save_referents_checkpoint(tiny_checkpoint, tmp_path / name, **{name: 1.0})
        (answer,) = load_grounder(tmp_path / name, device="cpu").ground(images[0], ["cup"])
        assert (answer.present, answer.referents, answer.box_xyxy) == (False, (), None)
        assert 0 < answer.score < 1


def test_answers_in_text_are_the_same_alone_and_together(text_checkpoint: Path, images: list[Image.Image]) -> None:
    grounder = load_grounder(text_checkpoint, device="cpu")
    assert isinstance(grounder, TextGrounder)
    together = grounder.ground_batch(images, EXPRESSIONS)
    for image, expressions, found in zip(images, EXPRESSIONS, together, strict=True):
        for expression, answer in zip(expressions, found, strict=True):
            (alone,) = grounder.ground(image, [expression])
            assert (answer.expression, answer.text) == (expression, alone.text)
            assert answer.score == pytest.approx(alone.score, rel=1e-4)
            assert (answer.finish_reason, answer.present) == ("stop", bool(answer.referents))
            assert (answer.box_xyxy is None) == (not answer.referents)
    assert len({answer.score for found in together for answer in found}) == 8


def test_a_box_head_needs_loc_in_its_prompt(tiny_checkpoint: Path) -> None:
    spec = load_checkpoint_spec(tiny_checkpoint)
    prompt = TINY_PROMPT.model_dump() | {"template": "<image>find {expression}", "loc_token_id": None}
    writes = {"kind": "generator", "generation": TINY_GENERATION}
    assert CheckpointSpec(**spec.model_dump() | {"prompt": prompt} | writes).kind == "generator"
    with pytest.raises(ValueError, match="generation"):
        CheckpointSpec(**spec.model_dump() | {"kind": "generator"})
    thresholds = {"present_threshold": 0.5, "referent_threshold": 0.5}
    for kind in ({}, {"kind": "referents"} | thresholds):
        with pytest.raises(ValueError, match=r"end with \[LOC\]"):
            CheckpointSpec(**spec.model_dump() | {"prompt": prompt} | kind)
    with pytest.raises(ValueError, match="referent_threshold"):
        CheckpointSpec(**spec.model_dump() | {"kind": "referents"})
    prompted = {"visual_prompts": TINY_SHAPE, "detector_image": DETECTOR_IMAGE, "image_tokens": 676}  # 26 squared
    with pytest.raises(ValueError, match="visual position prompts add others"):
        CheckpointSpec(**spec.model_dump() | {"kind": "referents"} | thresholds | prompted)
    with pytest.raises(ValueError, match="box_frame"):
        CheckpointSpec(**spec.model_dump() | {"kind": "referents", "box_frame": "image"} | thresholds)
    with pytest.raises(ValueError, match="5 image tokens are not square"):
        CheckpointSpec(**spec.model_dump() | {"kind": "referents", "image_tokens": 5} | thresholds)
