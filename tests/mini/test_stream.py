import random
from pathlib import Path

import numpy as np
import pytest
import torch

from referent.core.packing import Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.mini.scenes import SIDE, Materials, Scene, make_scene
from referent.mini.stream import SceneStream, encode_scene
from referent.training.encoding import collate
from referent.training.losses import PRETRAINING, box_loss, overlap
from tests.support.tiny import TINY_PROMPT
from tests.support.training import GRID, NAMES


def test_a_sample_depends_on_seed_and_index_alone(stream: SceneStream) -> None:
    first, again = stream[3], stream[3]
    assert all((first[name] == again[name]).all() for name in first)
    assert (stream[4]["image"] != first["image"]).any()
    assert len(stream) == 8


def test_targets_lie_where_the_scene_shows_them(spec: ModelSpec, tokenizer_file: Path) -> None:
    from PIL import Image

    scene = Scene(Image.new("RGB", (144, SIDE)), np.zeros((SIDE, 144), np.uint8))
    scene.add("cup", (48, 96, 96, 144))
    encoder = PromptEncoder(TINY_PROMPT, tokenizer_file, spec.image_tokens)
    row = Bucket(GRID**2 + 80, 3)
    sample = encode_scene(random.Random(0), scene, spec, encoder, NAMES, row)
    points = sample["points"][sample["present"]][0].reshape(GRID, GRID)
    assert np.argwhere(points).tolist() == [[4, 5], [4, 6], [5, 5], [5, 6]]  # the letterbox moves it by 72 px
    np.testing.assert_allclose(sample["boxes"][sample["present"]][0], np.array([144, 120, 48, 48]) / SIDE, atol=1e-6)
    assert (sample["patch_class"].reshape(GRID, GRID)[points] == NAMES.index("cup")).all()
    assert (sample["patch_class"].reshape(GRID, GRID)[~points] == len(NAMES)).all()


def test_batches_stack(stream: SceneStream) -> None:
    batch = collate([stream[i] for i in range(8)])
    assert batch["image"].shape == (8, SIDE, SIDE, 3)
    assert batch["image"].dtype == torch.uint8
    assert (batch["present"] <= batch["used"]).all()


@pytest.mark.parametrize("kind", ["icons", "crowd"])
def test_objects_lie_in_the_picture(materials: Materials, kind: str) -> None:
    for seed in range(20):
        scene = make_scene(random.Random(seed), materials, kind)
        assert max(scene.image.size) == SIDE
        for x1, y1, x2, y2 in scene.boxes:
            assert 0 <= x1 < x2 <= scene.image.width
            assert 0 <= y1 < y2 <= scene.image.height


def test_training_overlap_is_the_cores() -> None:
    from referent.core.boxes import cxcywh_to_xyxy, giou, iou

    a, b = (np.random.default_rng(seed).uniform(0.1, 0.9, (50, 4)) for seed in (0, 1))
    ours = overlap(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(ours[0], iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)), atol=1e-5)
    np.testing.assert_allclose(ours[1], giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)), atol=1e-5)


def test_loss_of_no_objects_is_zero_and_has_a_gradient() -> None:
    boxes = torch.zeros(0, 4, requires_grad=True)
    loss, iou = box_loss(boxes, torch.zeros(0, 4), PRETRAINING)
    loss.backward()
    assert loss == 0
    assert len(iou) == 0
