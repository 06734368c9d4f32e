from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import torch
from PIL import Image

from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint, load_checkpoint_encoder, load_checkpoint_spec
from referent.modeling.grounder import HeadGrounder, TextGrounder, load_grounder
from referent.modeling.grounding import GroundingModel
from tests.support.tiny import TINY_PROMPT

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
    (folder / "referent.json").write_text(spec.model_copy(update={"kind": "generator"}).model_dump_json())
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


def test_generation_begins_with_what_the_packed_pass_predicts(text_checkpoint: Path, images: list[Image.Image]) -> None:
    """Left padding, cache and positions of `generate` against one plain pass, an expression at a time."""
    grounder = load_grounder(text_checkpoint, device="cpu")
    assert isinstance(grounder, TextGrounder)
    model: GroundingModel = grounder._model
    squares = [grounder._spec.image.apply(image) for image in images]
    generated: list[torch.Tensor] = []
    generate = model.base.generate
    model.base.generate = lambda **named: generated.append(generate(**named)) or generated[0]
    grounder.write(squares, EXPRESSIONS)
    texts = [(square, text) for square, asked in zip(squares, EXPRESSIONS, strict=True) for text in asked]
    for (square, text), ids in zip(texts, generated[0], strict=True):
        prefix, suffix = grounder._encoder.prefix, grounder._encoder.suffix(text)
        row = torch.tensor([prefix + suffix + ids[:3].tolist()])
        segments = torch.tensor([[0] * len(prefix) + [1] * (row.shape[1] - len(prefix))])
        positions = torch.tensor([[row.shape[1] - 4 + step for step in range(4)]])
        with torch.inference_mode():
            features = model.encode_image(torch.from_numpy(square)[None])
            logits = model.base.lm_head(model.read_expressions(row, segments, positions, features)[0])
        assert logits[0].argmax(-1).tolist() == ids[:4].tolist()


def test_an_answer_that_is_no_box_is_an_invalid_prediction(text_checkpoint: Path, images: list[Image.Image]) -> None:
    grounder = load_grounder(text_checkpoint, device="cpu")
    grounder.write = lambda squares, expressions: ["[0.5, 0.5, 0.5, 0.5]", "no idea"]
    box, nothing = grounder.ground(images[2], ["cup", "plate"])
    assert box.box_xyxy == pytest.approx((7, 7, 21, 21))
    assert (nothing.box_xyxy, nothing.referents, nothing.text) == (None, (), "no idea")
    assert (nothing.score, nothing.present) == (None, None)


def test_a_box_head_needs_loc_in_its_prompt(tiny_checkpoint: Path) -> None:
    spec = load_checkpoint_spec(tiny_checkpoint)
    prompt = TINY_PROMPT.model_dump() | {"template": "<image>find {expression}", "loc_token_id": None}
    assert CheckpointSpec(**spec.model_dump() | {"prompt": prompt, "kind": "generator"}).kind == "generator"
    with pytest.raises(ValueError, match=r"end with \[LOC\]"):
        CheckpointSpec(**spec.model_dump() | {"prompt": prompt})
