"""Materials of scenes in small, as files."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from referent.mini.artwork import EVALUATED_STYLES, TRAIN_STYLES, UNSEEN_STYLE, VALIDATION_STYLE

NAMES = ("dog", "cat", "pumpkin")
PHOTOS = {"a.jpg": "train", "b.jpg": "test", "c.jpg": "val"}


@pytest.fixture
def materials_folder(tmp_path: Path) -> Path:
    """artwork.npz, cards/ and split.csv."""
    folder = tmp_path / "materials"
    images = folder / "cards" / "images"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0)
    icons = {}
    first = (*EVALUATED_STYLES, UNSEEN_STYLE)
    for style in (*first, *(style for style in dict.fromkeys((*TRAIN_STYLES, VALIDATION_STYLE)) if style not in first)):
        for name in NAMES:
            icons[f"{style}:{name}"] = noise.integers(60, 256, (24, 30, 4)).astype(np.uint8)
    np.savez(folder / "artwork.npz", **icons)
    with (folder / "cards" / "labels.csv").open("w") as labels, (folder / "split.csv").open("w") as split:
        rows, splits = csv.writer(labels), csv.writer(split)
        rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        splits.writerow(["filename", "split"])
        for name, part in PHOTOS.items():
            Image.effect_noise((96, 128), 70).convert("RGB").save(images / name)
            rows.writerow([name, 96, 128, "king", 10, 20, 50, 80])
            rows.writerow([name, 96, 128, "ace", 55, 20, 90, 90])
            splits.writerow([name, part])
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """wide.jpg 200x100, tall.jpg 100x200, and turned.jpg, which its EXIF shows as 100x200."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (200, 100)).save(folder / "wide.jpg")
    Image.new("RGB", (100, 200)).save(folder / "tall.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(folder / "turned.jpg", exif=exif)
    return folder
