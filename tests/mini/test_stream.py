import random
from pathlib import Path

import numpy as np
import pytest
import torch

from referent.core.boxes import area, cxcywh_to_xyxy, iou, xyxy_to_cxcywh
from referent.core.packing import Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.mini.canvas import SIDE, Scene
from referent.mini.icons import Materials
from referent.mini.scenes import make_scene
from referent.mini.stream import ORDERS, SceneStream, encode_scene
from referent.training.encoding import collate
from referent.training.losses import NO_LABEL, PRETRAINING, box_loss, overlap
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
    assert (sample["patch_shown"].reshape(GRID, GRID) == points).all()
    assert (sample["patch_class"].reshape(GRID, GRID)[points] == NAMES.index("cup")).all()
    assert (sample["patch_class"].reshape(GRID, GRID)[~points] == len(NAMES)).all()


def test_objects_of_one_name_are_ranked_in_every_order(spec: ModelSpec, tokenizer_file: Path) -> None:
    from PIL import Image

    scene = Scene(Image.new("RGB", (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint8))
    for name, box in (
        ("cup", (192, 0, 240, 48)), ("cup", (0, 48, 96, 144)), ("cup", (96, 192, 120, 216)), ("cup", (240, 2, 288, 50)),
        (next(name for name in NAMES if name != "cup"), (144, 96, 192, 144)),
    ):  # fmt: skip
        scene.add(name, box)
    encoder = PromptEncoder(TINY_PROMPT, tokenizer_file, spec.image_tokens)
    sample = encode_scene(random.Random(0), scene, spec, encoder, NAMES, Bucket(GRID**2 + 80, 3))
    ranks = sample["patch_ranks"].reshape(GRID, GRID, len(ORDERS))
    places = {"first": (0, 8), "large": (2, 0), "small": (8, 4), "alone": (4, 6), "background": (11, 11)}
    found = {name: dict(zip(ORDERS, ranks[place].tolist(), strict=True)) for name, place in places.items()}
    assert {found["large"][order] for order in ("left", "largest")} == {0}
    assert [found[name]["right"] for name in ("first", "small", "large")] == [1, 2, 3]
    assert found["large"]["top"] == 2
    assert found["first"]["top"] == found["first"]["largest"] == NO_LABEL  # two cups are as high and as large
    assert set(found["alone"].values()) == set(found["background"].values()) == {NO_LABEL}


def test_batches_stack(stream: SceneStream) -> None:
    batch = collate([stream[i] for i in range(8)])
    assert batch["image"].shape == (8, SIDE, SIDE, 3)
    assert batch["image"].dtype == torch.uint8
    assert (batch["single"] <= batch["present"]).all()
    assert (batch["present"] <= batch["used"]).all()
    assert (batch["points"].any(-1) <= batch["present"]).all()


@pytest.mark.parametrize("kind", ["icons", "crowd"])
def test_objects_lie_in_the_picture(materials: Materials, kind: str) -> None:
    for seed in range(20):
        scene = make_scene(random.Random(seed), materials, kind)
        assert max(scene.image.size) == SIDE
        for x1, y1, x2, y2 in scene.boxes:
            assert 0 <= x1 < x2 <= scene.image.width
            assert 0 <= y1 < y2 <= scene.image.height


def test_training_overlap_is_the_cores_and_giou_lacks_the_enclosing_boxs_empty_share() -> None:
    a, b = (cxcywh_to_xyxy(np.random.default_rng(seed).uniform(0.1, 0.9, (50, 4))) for seed in (0, 1))
    ious, gious = overlap(torch.from_numpy(xyxy_to_cxcywh(a)), torch.from_numpy(xyxy_to_cxcywh(b)))
    union = (area(a) + area(b)) / (1 + iou(a, b))
    enclosing = area(np.concatenate([np.minimum(a, b)[:, :2], np.maximum(a, b)[:, 2:]], axis=1))
    np.testing.assert_allclose(ious, iou(a, b), atol=1e-5)
    np.testing.assert_allclose(gious, iou(a, b) - (1 - union / enclosing), atol=1e-5)


@pytest.mark.parametrize(("other", "giou"), [((0, 0, 2, 2), 1), ((1, 1, 3, 3), 1 / 7 - 2 / 9), ((4, 0, 6, 2), -1 / 3)])
def test_giou_of_known_boxes(other: tuple[int, ...], giou: float) -> None:
    a, b = (xyxy_to_cxcywh(np.array([box], np.float64)) for box in ((0, 0, 2, 2), other))
    assert overlap(torch.from_numpy(a), torch.from_numpy(b))[1].item() == pytest.approx(giou, abs=1e-6)


def test_loss_of_no_objects_is_zero_and_has_a_gradient() -> None:
    boxes = torch.zeros(0, 4, requires_grad=True)
    loss, iou = box_loss(boxes, torch.zeros(0, 4), PRETRAINING)
    loss.backward()
    assert loss == 0
    assert len(iou) == 0
