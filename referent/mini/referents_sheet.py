"""A sheet of pictures with several referents, answered by the running service's mini-all.

python -m referent.mini.referents_sheet artwork.npz docs/images/referents.webp
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from referent.client.drawing import draw
from referent.client.http import Client
from referent.data.plurals import plural
from referent.mini.artwork import load_artwork
from referent.mini.canvas import Scene
from referent.mini.drawings import GAP, TILE
from referent.mini.icons import Look, Materials
from referent.mini.scenes import make_scene, repeated_scene

COLUMNS = 3
CAPTION = 22  # pixels below each picture


class Panel(NamedTuple):
    """A picture, each question with the number of things that it means, and whether the heat map is drawn."""

    scene: Scene
    questions: dict[str, int]
    heatmap: bool = False


def panels(materials: Materials) -> Iterator[Panel]:
    """Eight cats, what isn't there, where the model looked, a crowd, rows, a thing twenty times."""
    cats = of_one_name(materials, "cat", 8)
    yield Panel(cats, {"the cats": 8})
    yield Panel(cats, {"the dogs": 0, "the pumpkins": 0})
    yield Panel(cats, {"the cats on the left": 2}, heatmap=True)
    crowd = make_scene(random.Random("crowd/1"), materials, "crowd")
    frequent = sorted(set(crowd.names), key=lambda name: (crowd.names.count(name), name))[-3:]
    yield Panel(crowd, {f"all {plural(name) or name}": crowd.names.count(name) for name in frequent})
    rows = make_scene(random.Random("rows/3"), materials, "rows")
    name = max(rows.names, key=rows.names.count)
    yield Panel(rows, {f"the two topmost {plural(name) or name}": 2, f"the {name} at the bottom": 1})
    yield Panel(of_one_name(materials, "key", 20), {"the keys": 20})


def of_one_name(materials: Materials, name: str, count: int) -> Scene:
    """The first scene with so many things of that name."""
    for seed in range(100_000):
        scene, shown = repeated_scene(random.Random(f"sheet/{seed}"), materials, count, Look(("noto", "fluent3d")))
        if shown == name and scene.names.count(name) == count:
            return scene
    raise ValueError(f"no scene of {count} {name}s: choose fewer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artwork", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    asked = list(panels(Materials(load_artwork(arguments.artwork), [], [])))
    width, height = TILE[0] + GAP, TILE[1] + CAPTION + GAP
    sheet = Image.new("RGB", (COLUMNS * width - GAP, -(-len(asked) // COLUMNS) * height - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    with Client() as client:
        for index, (scene, questions, heatmap) in enumerate(asked):
            answers = client.ground(scene.image, list(questions), "mini-all", heatmap=heatmap).results
            scale = min(TILE[0] / scene.image.width, TILE[1] / scene.image.height)
            picture = draw(scene.image, answers)
            size = round(picture.width * scale), round(picture.height * scale)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
            picture.thumbnail(TILE)
            row, column = divmod(index, COLUMNS)
            sheet.paste(picture, (column * width, row * height))
            found = ", ".join(
                f"{answer.expression}: {len(answer.referents)} for {count}"
                for answer, count in zip(answers, questions.values(), strict=True)
            )
            pen.text((column * width, row * height + TILE[1] + 4), found, "black", font_size=14)
    sheet.save(arguments.out, quality=82)


if __name__ == "__main__":
    main()
