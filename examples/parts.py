"""Data for the tutorial: pictures of four machine parts that mini has never seen, 40 boxes in labels.csv.

python examples/parts.py parts
"""

import csv
import random
import sys
from math import cos, pi, sin
from pathlib import Path

from PIL import Image, ImageDraw

PICTURES, SIZE = 20, (480, 360)
Box = tuple[float, float, float, float]  # left, top, right, bottom


def gauge(pen: ImageDraw.ImageDraw, box: Box, angle: float) -> None:
    """A dial with a needle."""
    left, top, right, bottom = box
    x, y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    pen.ellipse(box, fill="white", outline="black", width=5)
    for mark in range(9):
        turn = pi * (0.75 + mark / 5.33)
        ends = [(x + share * radius * cos(turn), y + share * radius * sin(turn)) for share in (0.7, 0.85)]
        pen.line(ends, fill="black", width=3)
    pen.line([(x, y), (x + 0.65 * radius * cos(angle), y + 0.65 * radius * sin(angle))], fill="red", width=4)


def valve(pen: ImageDraw.ImageDraw, box: Box, angle: float) -> None:
    """A hand wheel with four spokes."""
    left, top, right, bottom = box
    x, y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    pen.ellipse(box, outline="firebrick", width=max(6, round(radius / 5)))
    for spoke in range(4):
        turn = angle + spoke * pi / 2
        end = (x + 0.85 * radius * cos(turn), y + 0.85 * radius * sin(turn))
        pen.line([(x, y), end], fill="firebrick", width=max(4, round(radius / 7)))


def nut(pen: ImageDraw.ImageDraw, box: Box, angle: float) -> None:
    """An octagon with a hole."""
    left, top, right, bottom = box
    x, y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    corners = [(x + radius * cos(pi * k / 4), y + radius * sin(pi * k / 4)) for k in range(8)]
    pen.polygon(corners, fill="slategray", outline="black", width=3)
    pen.ellipse((x - radius / 2, y - radius / 2, x + radius / 2, y + radius / 2), fill="gainsboro", outline="black")


def fuse(pen: ImageDraw.ImageDraw, box: Box, angle: float) -> None:
    """A tube of glass between two caps."""
    left, top, right, bottom = box
    cap = (right - left) / 4
    pen.rectangle(box, fill="lightcyan", outline="black", width=2)
    pen.rectangle((left, top, left + cap, bottom), fill="goldenrod", outline="black", width=2)
    pen.rectangle((right - cap, top, right, bottom), fill="goldenrod", outline="black", width=2)
    pen.line([(left + cap, (top + bottom) / 2), (right - cap, (top + bottom) / 2)], fill="black", width=2)


DRAWN = {"gauge": gauge, "valve": valve, "nut": nut, "fuse": fuse}


def main(folder: Path) -> None:
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"))
        for index in range(PICTURES):
            image = Image.new("RGB", SIZE, rng.choice(("beige", "lightsteelblue", "darkseagreen", "silver", "tan")))
            pen = ImageDraw.Draw(image)
            for place, name in enumerate(rng.sample([*DRAWN], 2)):
                width = rng.randint(80, 170)
                height = width // 2 if name == "fuse" else width
                left = rng.randint(10, 230 - width) + 240 * place
                top = rng.randint(10, SIZE[1] - height - 10)
                box = (left, top, left + width, top + height)
                DRAWN[name](pen, box, rng.uniform(0, 2 * pi))
                rows.writerow((f"{index:02}.jpg", *SIZE, name, *box))
            image.save(folder / "images" / f"{index:02}.jpg", quality=92)
    print(f"{folder}/labels.csv: {2 * PICTURES} boxes in {PICTURES} pictures")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
