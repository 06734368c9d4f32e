"""Photographs of playing cards: reads them, and splits them by photo, with look-alikes in the same split.

    python -m referent.mini.cards CARDS_FOLDER split.csv

CARDS_FOLDER holds `images/` and `labels.csv` (filename,width,height,class,xmin,ymin,xmax,ymax).
"""

import argparse
import csv
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

RANKS = ("nine", "ten", "jack", "queen", "king", "ace")
LOOK_ALIKE_BITS = 12  # of the 64 of a perceptual hash; unrelated photos differ in about 32
SHARES = {"test": 0.2, "val": 0.1}  # the rest is train


@dataclass(frozen=True)
class Photo:
    """A photograph and its labelled cards: (rank, box xyxy in pixels)."""

    file: Path
    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]

    def open(self) -> Image.Image:
        """Decoded RGB."""
        with Image.open(self.file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


def read_photos(folder: Path) -> dict[str, Photo]:
    """File name -> photo. Labels are scaled to the file's true size where `labels.csv` was made at another."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "labels.csv").open() as lines:
        for row in csv.DictReader(lines):
            rows.setdefault(row["filename"], []).append(row)
    photos = {}
    for name, labels in sorted(rows.items()):
        file = folder / "images" / name
        with Image.open(file) as image:
            width, height = image.size
        scale_x, scale_y = width / int(labels[0]["width"]), height / int(labels[0]["height"])
        photos[name] = Photo(
            file,
            tuple(
                (
                    row["class"],
                    (
                        int(row["xmin"]) * scale_x,
                        int(row["ymin"]) * scale_y,
                        int(row["xmax"]) * scale_x,
                        int(row["ymax"]) * scale_y,
                    ),
                )
                for row in labels
            ),
        )
    return photos


def read_split(file: Path) -> dict[str, list[str]]:
    """Split -> file names."""
    split: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    with file.open() as lines:
        for row in csv.DictReader(lines):
            split[row["split"]].append(row["filename"])
    return split


def make_split(photos: dict[str, Photo], seed: int = 0) -> dict[str, str]:
    """File name -> split. Photos within `LOOK_ALIKE_BITS` of each other, also through a third, stay together."""
    import imagehash  # for this alone: reading labels needs no such thing

    hashes = {name: imagehash.phash(photo.open()) for name, photo in tqdm(photos.items(), desc="hash")}
    cluster = {name: name for name in photos}

    def root(name: str) -> str:
        while cluster[name] != name:
            name = cluster[name]
        return name

    names = list(photos)
    for i, a in enumerate(names):
        for b in names[:i]:
            if hashes[a] - hashes[b] <= LOOK_ALIKE_BITS:
                cluster[root(a)] = root(b)
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(root(name), []).append(name)
    clusters = list(members.values())
    random.Random(seed).shuffle(clusters)
    split = dict.fromkeys(names, "train")
    for target, share in SHARES.items():
        wanted = round(share * len(names))
        for group in list(clusters):
            if len(group) <= wanted:
                clusters.remove(group)
                wanted -= len(group)
                split.update(dict.fromkeys(group, target))
    return split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    split = make_split(read_photos(arguments.folder))
    with arguments.out.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("filename", "split"))
        writer.writerows(split.items())
    print({name: list(split.values()).count(name) for name in ("train", "val", "test")}, "->", arguments.out)


if __name__ == "__main__":
    main()
