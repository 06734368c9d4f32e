import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from referent.mini.augmentation import ICON_WAYS, SCENE_WAYS, UNSEEN, Augmentation, ink, outlined, recolouring
from referent.mini.canvas import SIDE
from referent.mini.icons import Materials
from referent.mini.scenes import make_scene, training_scene


@pytest.fixture
def icon() -> Image.Image:
    """A ring, black on white, on nothing."""
    image = Image.new("RGBA", (60, 40))
    ImageDraw.Draw(image).ellipse((5, 5, 54, 34), fill="white", outline="black", width=4)
    return image


@pytest.mark.parametrize("way", ICON_WAYS | SCENE_WAYS)
def test_a_recolouring_keeps_size_and_mode_and_depends_on_the_seed_alone(way: str) -> None:
    image = Image.effect_noise((50, 30), 90).convert("RGB")
    first, again = (recolouring(random.Random(3), {way: 1})(image) for _ in range(2))
    assert (first.size, first.mode) == (image.size, "RGB")
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("behind", [0, 60, 127, 128, 200, 255])
def test_ink_alone_stands_out_from_what_lies_behind(icon: Image.Image, behind: int) -> None:
    for seed in range(20):
        drawn = np.asarray(ink(random.Random(seed), icon, see_through=1, behind=behind))
        assert drawn[20, 30, 3] == UNSEEN < 5
        assert drawn[20, 6, 3] > 200
        assert abs(drawn[20, 6, :3].mean() - behind) > 40


def test_ink_and_what_it_encloses_differ_in_brightness(icon: Image.Image) -> None:
    for seed in range(20):
        drawn = np.asarray(ink(random.Random(seed), icon, see_through=0, behind=128), float)
        assert drawn[20, 30, 3] == 255
        assert abs(drawn[20, 30, :3].mean() - drawn[20, 6, :3].mean()) > 30


def test_an_outline_surrounds_the_icon(icon: Image.Image) -> None:
    bordered = outlined(random.Random(0), icon)
    inside, border = (np.asarray(image.getchannel("A")) > 0 for image in (icon, bordered))
    margin = (bordered.width - icon.width) // 2
    assert border[margin:-margin, margin:-margin][inside].all()
    assert border.sum() > inside.sum()


def test_what_the_lines_of_ink_alone_enclose_stays_the_icons(icon: Image.Image) -> None:
    inked = ink(random.Random(0), icon, see_through=1, behind=128)
    shapes = [np.asarray(image.getchannel("A")) >= UNSEEN for image in (icon, inked, outlined(random.Random(0), inked))]
    assert (shapes[1][10:30, 10:50] == shapes[0][10:30, 10:50]).all()
    assert shapes[2].sum() > shapes[0].sum()


@pytest.mark.parametrize("kind", ["icons", "alike", "rows", "crowd", "many"])
def test_whatever_is_done_objects_stay_in_the_picture(materials: Materials, kind: str) -> None:
    always = replace(Augmentation(), icon=1, scene=1, outline=0.5, see_through=0.5, shadow=1, grain=1, blur=1, jpeg=1)
    for seed in range(6):
        scene = training_scene(random.Random(seed), materials, {kind: 1}, always)
        assert max(scene.image.size) == SIDE
        assert scene.owner.shape == scene.image.size[::-1]
        for number, (x1, y1, x2, y2) in enumerate(scene.boxes, 1):
            assert 0 <= x1 < x2 <= scene.image.width
            assert 0 <= y1 < y2 <= scene.image.height
            assert (scene.owner[y1:y2, x1:x2] == number).any()


def test_scenes_of_rows_and_of_several_alike_have_at_least_three_of_a_name(materials: Materials) -> None:
    for kind in ("rows", "alike"):
        scenes = [make_scene(random.Random(seed), materials, kind) for seed in range(20)]
        assert sum(max(map(scene.names.count, scene.names)) >= 3 for scene in scenes) > 15
