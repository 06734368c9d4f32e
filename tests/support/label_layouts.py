"""Marks of pictures that are hard to label, and where `referent.client.labels` puts their labels.

PYTHONPATH=. python -m tests.support.label_layouts    # writes tests/client/label_layouts.json, for the page's tests
"""

import json
import random
from pathlib import Path
from typing import Any

from referent.client.labels import Mark, Size, place_labels, versions

FILE = Path(__file__).parents[1] / "client" / "label_layouts.json"
LINE = 10
WORDS = ("the cat", "the second dog from the left in the picture", "a", "das große Tier ganz links oben 中文")


def layouts() -> dict[str, tuple[Size, list[Mark]]]:
    """Name -> the picture's (width, height) and its marks."""
    chance = random.Random(5)
    grid = [(x * 40 + 4, y * 40 + 4, x * 40 + 36, y * 40 + 36) for x in range(8) for y in range(6)]
    scattered = [_box(chance, 300, 200) for _ in range(24)]
    dots = [
        (x - 5, y - 5, x + 5, y + 5) for x, y in ((chance.uniform(0, 300), chance.uniform(0, 200)) for _ in range(40))
    ]
    nested = [(n * 8, n * 8, 300 - n * 8, 200 - n * 8) for n in range(12)]
    return {
        "one": ((300, 200), _marks([(20, 50, 90, 120)])),
        "corners": ((300, 200), _marks([(0, 0, 20, 20), (280, 0, 300, 20), (0, 180, 20, 200), (280, 180, 300, 200)])),
        "whole picture": ((300, 200), _marks([(0, 0, 300, 200)] * 3)),
        "same place": ((300, 200), _marks([(140, 90, 160, 110)] * 9)),
        "scattered": ((300, 200), _marks(scattered)),
        "nested": ((300, 200), _marks(nested)),
        "grid of one expression": ((320, 240), _marks(grid, several=True)),
        "dots": ((300, 200), _marks(dots, is_dot=True)),
        "dots of one expression": ((300, 200), _marks(dots, is_dot=True, several=True)),
        "narrow": ((30, 400), _marks([(0, n * 40, 30, n * 40 + 30) for n in range(10)])),
        "no room": ((8, 8), _marks([(1, 1, 7, 7)])),
        "crowded": ((120, 80), _marks([_box(chance, 120, 80) for _ in range(150)], several=True)),
    }


def _box(chance: random.Random, width: int, height: int) -> tuple[float, float, float, float]:
    x, y = round(chance.uniform(0, width * 0.9), 2), round(chance.uniform(0, height * 0.9), 2)
    return x, y, min(width, x + chance.randint(3, width // 2)), min(height, y + chance.randint(3, height // 2))


def _marks(boxes: list[Any], *, is_dot: bool = False, several: bool = False) -> list[Mark]:
    marks = []
    for index, box in enumerate(boxes):
        words = WORDS[0 if several else index % len(WORDS)]
        texts = versions(words, 0.5, index + 1, index + 1 if several else None)
        sizes = tuple((6 * len(text) + 4, LINE) for text in texts)
        marks.append(Mark(tuple(map(float, box)), is_dot, not several or index == 0, sizes))
    return marks


def records() -> dict[str, Any]:
    """What the file holds: layouts with their places, and texts of labels."""
    shown = []
    for name, (size, marks) in layouts().items():
        places = [label and label._asdict() for label in place_labels(size, marks)]
        shown.append({"name": name, "size": size, "marks": [mark._asdict() for mark in marks], "places": places})
    asked = [(words, score, 3, rank) for words in WORDS for score in (None, 0.5) for rank in (None, 1, 2)]
    asked += [("word" * 30, 0.25, 1, None), ("  two \n words ", None, 1, None)]
    return {"layouts": shown, "texts": [{"asked": each, "versions": versions(*each)} for each in asked]}


if __name__ == "__main__":
    FILE.write_text(json.dumps(records(), indent=None, ensure_ascii=False, separators=(",", ":")) + "\n")
