"""Sample pictures that ship with the project: scenes of the generator, in freely licensed styles, with their boxes.

    python -m referent.mini.samples artwork.npz tests/samples

Six are as the evaluation sets have them; one looks like a photograph of a table, and one has several things of a name.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from referent.core.boxes import Box
from referent.mini.artwork import Icon, load_artwork
from referent.mini.canvas import Scene
from referent.mini.icons import Materials
from referent.mini.scenes import make_scene

STYLE = "noto"  # Noto Color Emoji, SIL Open Font License 1.1
SOLID_STYLE = "fluent3d"  # Fluent Emoji, MIT
SAMPLES = 6
TABLE = (480, 360)
# name, centre x, centre y, longer side: pixels
ON_THE_TABLE = (
    ("teapot", 120, 118, 118),
    ("pineapple", 252, 96, 128),
    ("camera", 384, 128, 104),
    ("banana", 116, 262, 112),
    ("key", 246, 286, 74),
    ("strawberry", 366, 262, 92),
)
PETS = (480, 320)
AMONG_THE_PETS = (
    ("cat", 70, 88, 92),
    ("dog", 196, 74, 84),
    ("cat", 318, 92, 104),
    ("apple", 428, 70, 62),
    ("cat", 104, 236, 108),
    ("dog", 248, 226, 112),
    ("cat", 396, 232, 118),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artwork", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    artwork = load_artwork(arguments.artwork)
    materials = Materials(artwork, [], [])
    scenes: list[Scene] = []
    seed = 0
    while len(scenes) < SAMPLES:
        scene = make_scene(random.Random(f"sample/{seed}"), materials, "icons", (STYLE,))
        seed += 1
        if len(scene.names) >= 4 and max(Counter(scene.names).values()) == 1:  # a name alone says which
            scenes.append(scene)
    scenes.append(photographed(artwork[SOLID_STYLE], TABLE, ON_THE_TABLE))
    scenes.append(photographed(artwork[SOLID_STYLE], PETS, AMONG_THE_PETS))
    cases = []
    for number, scene in enumerate(scenes, 1):
        image = f"scene-{number}.jpg"
        scene.image.save(arguments.out / image, quality=92 if number <= SAMPLES else 85)
        cases.append({"image": image, **described(scene)})
    (arguments.out / "samples.json").write_text(json.dumps(cases, indent=1) + "\n")


def described(scene: Scene) -> dict[str, object]:
    """`objects` that a name alone tells from the others, and `groups` of several that have one name."""
    boxes: dict[str, list[Box]] = {}
    for name, box in zip(scene.names, scene.boxes, strict=True):
        boxes.setdefault(name, []).append(box)
    groups = [
        {"plural": f"the {name}s", "singular": f"the leftmost {name}", "boxes": found}
        for name, found in boxes.items()
        if len(found) > 1
    ]
    objects = {name: found[0] for name, found in boxes.items() if len(found) == 1}
    return {"objects": objects} | ({"groups": groups} if groups else {})


def photographed(icons: dict[str, Icon], size: tuple[int, int], things: tuple[tuple[str, int, int, int], ...]) -> Scene:
    """Things on a wooden table: shadows, light from one side, a lens that is not quite sharp, a sensor's noise."""
    chance = np.random.default_rng(7)
    image = _wood(chance, size)
    scene = Scene(image, np.zeros((size[1], size[0]), np.uint8))
    for name, x, y, side in things:
        icon = Image.fromarray(icons[name])
        scale = side / max(icon.size)
        icon = icon.resize((round(icon.width * scale), round(icon.height * scale)), Image.Resampling.LANCZOS)
        left, top = x - icon.width // 2, y - icon.height // 2
        shadow = Image.new("L", size)
        shape = icon.getchannel("A").resize((icon.width, max(1, icon.height * 2 // 3)))
        shadow.paste(shape, (left + side // 9, top + icon.height // 3 + side // 14))
        shadow = shadow.filter(ImageFilter.GaussianBlur(side / 14)).point(lambda value: int(value * 0.55))
        image.paste((30, 18, 10), (0, 0), shadow)
        image.paste(icon, (left, top), icon)
        scene.add(name, (left, top, left + icon.width, top + icon.height), np.asarray(icon)[..., 3] > 60)
    scene.image = _taken(chance, image)
    return scene


def _wood(chance: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Planks along the picture, with grain."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(float)
    plank = (y // (height / 4)).astype(int)
    shift, tone = chance.uniform(0, 900, 4)[plank], chance.uniform(0.9, 1.08, 4)[plank]
    wave = np.sin((x + shift) / 61) * 5 + np.sin((x + 2 * shift) / 23) * 2
    grain = np.sin((y + wave) / 2.6) * 0.5 + np.sin((y + 1.7 * wave) / 7.1)
    fine = chance.normal(0, 1, (height, width // 12 + 1)).repeat(12, 1)[:, :width]
    share = tone * (1 + 0.05 * grain + 0.035 * fine)
    share[(y % (height / 4)) < 1.5] *= 0.6  # between two planks
    return _image(np.array([176, 128, 84]) * share[..., None])


def _taken(chance: np.random.Generator, image: Image.Image) -> Image.Image:
    width, height = image.size
    y, x = np.mgrid[0:height, 0:width].astype(float)
    light = 1.16 - 0.42 * np.hypot(x / width - 0.25, y / height - 0.15)
    lit = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), float) * light[..., None]
    return _image(lit * np.array([1.03, 1.0, 0.94]) + chance.normal(0, 3.5, (height, width, 3)))


def _image(values: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
