"""A sheet of training scenes, each with an expression and the boxes of what it means.

    python -m referent.mini.sheet artwork.npz docs/images/training_scenes.jpg

Drawn backgrounds alone: photographs do not ship.
"""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from referent.mini.artwork import load_artwork
from referent.mini.expressions import training_expressions
from referent.mini.icons import Materials
from referent.mini.scenes import CLASSES, SceneKind, training_scene

COLUMNS, ROWS, SIDE, CAPTION = 6, 4, 192, 16
MIX: dict[SceneKind, float] = {"icons": 0.4, "alike": 0.3, "rows": 0.2, "crowd": 0.1}


def sheet(materials: Materials, seed: str, rows: int = ROWS) -> Image.Image:
    """Scene k depends on the seed and k alone."""
    page = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + CAPTION)), "white")
    for index in range(COLUMNS * rows):
        row, column = divmod(index, COLUMNS)
        page.paste(_scene(materials, random.Random(f"{seed}/{index}")), (column * SIDE, row * (SIDE + CAPTION)))
    return page


def _scene(materials: Materials, rng: random.Random) -> Image.Image:
    scene = training_scene(rng, materials, MIX)
    said = training_expressions(rng, scene.names, scene.boxes, scene.image.size, CLASSES, 1, several=0.5)
    picture = scene.image.copy()
    pen = ImageDraw.Draw(picture)
    for target in said[0].targets if said else ():
        pen.rectangle(scene.boxes[target], outline="black", width=5)
        pen.rectangle(scene.boxes[target], outline="lime", width=3)
    picture.thumbnail((SIDE - 6, SIDE - 6))
    tile = Image.new("RGB", (SIDE, SIDE + CAPTION), "white")
    tile.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    if said:
        text = said[0].text if said[0].targets else f"{said[0].text}: none"
        ImageDraw.Draw(tile).text((SIDE / 2, SIDE), text, "black", ImageFont.load_default(10), "ma")
    return tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artwork", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", default="sheet")
    arguments = parser.parse_args()
    sheet(Materials(load_artwork(arguments.artwork), [], []), arguments.seed).save(arguments.out, quality=80)


if __name__ == "__main__":
    main()
