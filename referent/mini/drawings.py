"""A sheet of twelve pictures that are hard to draw on, from the samples and their true boxes.

python -m referent.mini.drawings tests/samples docs/images/drawing.webp
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from referent.client.drawing import colour, draw
from referent.core.answers import Answer, Referent
from referent.core.boxes import Box, Floats

TILE = (400, 330)
COLUMNS = 4
GAP = 8
SCORE = 0.87


class Sample(NamedTuple):
    """A sample picture with the boxes of its things."""

    image: Image.Image
    boxes: dict[str, list[Box]]

    def resized(self, width: int) -> "Sample":
        scale = width / self.image.width
        image = self.image.resize((width, round(self.image.height * scale)), Image.Resampling.LANCZOS)
        return Sample(image, {name: [_scaled(box, scale) for box in found] for name, found in self.boxes.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    drawn = [draw(image, answers) for image, answers in hard_pictures(read(arguments.samples))]
    rows = -(-len(drawn) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE[0] + GAP) - GAP, rows * (TILE[1] + GAP) - GAP), "white")
    for index, picture in enumerate(drawn):
        picture.thumbnail(TILE, Image.Resampling.LANCZOS)
        row, column = divmod(index, COLUMNS)
        sheet.paste(picture, (column * (TILE[0] + GAP), row * (TILE[1] + GAP)))
    sheet.save(arguments.out, quality=82)


def read(folder: Path) -> list[Sample]:
    samples = []
    for case in json.loads((folder / "samples.json").read_text()):
        boxes = {f"the {name}": [tuple(box)] for name, box in case["objects"].items()}
        boxes |= {group["plural"]: [tuple(box) for box in group["boxes"]] for group in case.get("groups", [])}
        with Image.open(folder / case["image"]) as image:
            samples.append(Sample(image.convert("RGB"), boxes))
    return samples


def hard_pictures(samples: Sequence[Sample]) -> list[tuple[Image.Image, list[Answer]]]:
    """Twelve pictures, each with what is drawn on it."""
    table, pets = samples[6].resized(400), samples[7].resized(400)
    cats, size = pets.boxes["the cats"], table.image.size
    crowd = _beside([sample.resized(133) for sample in samples[:6]])
    herd = _herd(pets.image.crop((14, 34, 100, 112)).resize((44, 40)), (8, 7))
    tall, tiny, white = samples[1].resized(110), samples[4].resized(64), samples[3].resized(300)
    wordy = {
        f"{name} on the wooden table, seen from above, a little to the {side} of the others": boxes
        for (name, boxes), side in zip(table.boxes.items(), ("left", "right") * 3, strict=True)
    }
    corners: list[Box] = [(0, 0, 60, 50), (340, 0, 400, 50), (0, 250, 60, 300), (340, 250, 400, 300), (0, 0, 400, 300)]
    names = ("die große Ecke", "η γωνία", "угол", "le coin à droite", "the whole picture")
    own_colour = Image.new("RGB", size, colour(0))
    own_colour.paste(table.image.crop((270, 60, 380, 150)), (60, 60))
    night = Image.fromarray(np.asarray(pets.image) // 8)
    pictures = [
        (crowd.image, crowd.boxes),
        (herd.image, herd.boxes),
        (table.image, wordy),
        (table.image, dict(zip(names, ([box] for box in corners), strict=True))),
        (table.image, {f"thing {n} of nine": [(170.0, 120.0, 230.0, 180.0)] for n in range(1, 10)}),
        (night, pets.boxes),
        (white.image, white.boxes),
        (own_colour, {"on the colour of its own line": [(60.0, 60.0, 170.0, 150.0)]}),
        (tall.image, tall.boxes),
        (tiny.image, tiny.boxes),
    ]
    boxed = [(image, _answers(boxes, image.size)) for image, boxes in pictures]
    [warm] = _answers({"the cats": cats}, size)
    dotted = [
        Answer.of(words, [Referent.of_point(words, _centre(box), size, SCORE, True) for box in found], present=True)
        for words, found in pets.boxes.items()
    ]
    return [*boxed, (pets.image, [_warmed(warm, pets.image.size, cats)]), (pets.image, dotted)]


def _answers(boxes: dict[str, list[Box]], size: tuple[int, int]) -> list[Answer]:
    answers = []
    for expression, found in boxes.items():
        referents = [Referent.of_box(expression, np.array(box), size, SCORE, True) for box in found]
        answers.append(Answer.of(expression, referents, present=True))
    return answers


def _beside(samples: Sequence[Sample]) -> Sample:
    """The samples in rows of three, with all of their boxes."""
    width, height = samples[0].image.width, max(sample.image.height for sample in samples)
    image = Image.new("RGB", (3 * width, height * (len(samples) // 3)), "white")
    boxes: dict[str, list[Box]] = {}
    for index, sample in enumerate(samples):
        x, y = index % 3 * width, index // 3 * height
        image.paste(sample.image, (x, y))
        for name, found in sample.boxes.items():
            moved = [(x1 + x, y1 + y, x2 + x, y2 + y) for x1, y1, x2, y2 in found]
            boxes.setdefault(name, []).extend(moved)
    return Sample(image, boxes)


def _herd(animal: Image.Image, count: tuple[int, int]) -> Sample:
    """Many of one kind in rows."""
    across, down = animal.width + 6, animal.height + 6
    image = Image.new("RGB", (across * count[0], down * count[1]), (150, 110, 75))
    boxes: list[Box] = []
    for row in range(count[1]):
        for column in range(count[0]):
            x, y = column * across + 3, row * down + 3
            image.paste(animal, (x, y))
            boxes.append((x, y, x + animal.width, y + animal.height))
    return Sample(image, {"all the cats": boxes})


def _warmed(answer: Answer, size: tuple[int, int], boxes: Sequence[Box]) -> Answer:
    """With a heat map as a model of 12x12 image tokens in a letterbox gives it: warm at the boxes' centres."""
    side = max(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    cells = (np.mgrid[0:12, 0:12][::-1] + 0.5) * side / 12 + np.array([left, top])[:, None, None]  # (2, 12, 12) x, y
    heat = np.zeros((12, 12))
    for box in boxes:
        away = np.linalg.norm(cells - _centre(box)[:, None, None], axis=0)
        heat = np.maximum(heat, np.exp(-((away / (box[2] - box[0]) * 2.4) ** 2)))
    rows = tuple(tuple(row) for row in heat.tolist())
    return answer.model_copy(update={"heatmap": rows, "heatmap_xyxy": (left, top, left + side, top + side)})


def _centre(box: Box) -> Floats:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def _scaled(box: Box, scale: float) -> Box:
    x1, y1, x2, y2 = box
    return x1 * scale, y1 * scale, x2 * scale, y2 * scale


if __name__ == "__main__":
    main()
