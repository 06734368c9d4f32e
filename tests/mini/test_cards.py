import csv
from pathlib import Path

import imagehash
from PIL import Image

from referent.mini.cards import LOOK_ALIKE_BITS, make_split, read_photos, read_split

SPLIT = Path(__file__).parents[2] / "runs" / "mini" / "cards_split.csv"


def folder_with(tmp_path: Path, photos: dict[str, Image.Image]) -> Path:
    (tmp_path / "images").mkdir()
    with (tmp_path / "labels.csv").open("w") as out:
        writer = csv.writer(out)
        writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for name, image in photos.items():
            image.save(tmp_path / "images" / name)
            writer.writerow([name, image.width * 2, image.height * 2, "king", 20, 40, 60, 80])
    return tmp_path


def noise(seed: int) -> Image.Image:
    small = Image.effect_noise((9, 9), 90 + seed)
    return small.resize((90, 90), Image.Resampling.BICUBIC).convert("RGB")


def test_labels_are_scaled_to_the_file(tmp_path: Path) -> None:
    photos = read_photos(folder_with(tmp_path, {"a.jpg": noise(0)}))
    assert photos["a.jpg"].objects == (("king", (10, 20, 30, 40)),)


def test_look_alikes_stay_on_one_side(tmp_path: Path) -> None:
    pictures = {}
    for index in range(12):
        picture = noise(index)
        pictures[f"{index}-original.png"] = picture
        pictures[f"{index}-twin.png"] = picture.resize((80, 80))
    split = make_split(read_photos(folder_with(tmp_path, pictures)))
    assert set(split.values()) == {"train", "val", "test"}
    for index in range(12):
        assert split[f"{index}-original.png"] == split[f"{index}-twin.png"]


def test_the_committed_split_keeps_look_alikes_together(data_folder: Path) -> None:
    photos, split = read_photos(data_folder / "cards"), read_split(SPLIT)
    hashes = {name: imagehash.phash(photo.open()) for name, photo in photos.items()}
    for name in split["test"] + split["val"]:
        assert all(hashes[name] - hashes[other] > LOOK_ALIKE_BITS for other in split["train"])


def test_the_committed_split_is_disjoint() -> None:
    split = read_split(SPLIT)
    assert {name: len(files) for name, files in split.items()} == {"train": 207, "val": 30, "test": 59}
    assert len(set(split["train"]) | set(split["val"]) | set(split["test"])) == 296
