"""Artwork for synthetic scenes: icons of several drawing styles, rasterised once into one .npz.

    python -m referent.mini.artwork DOWNLOADS artwork.npz

DOWNLOADS holds what runs/mini.sh fetches: Debian's fonts-noto-color-emoji (OFL), npm's @lobehub/fluent-emoji-3d and
-flat (MIT), and emoji-datasource-twitter (CC-BY-4.0), whose style is never trained on.
"""

import argparse
import csv
import io
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

TRAIN_STYLES = ("noto", "fluent3d", "fluentflat")
UNSEEN_STYLE = "twitter"
MAX_SIDE = 160

Icon = npt.NDArray[np.uint8]  # (h, w, 4) RGBA, cropped to what is drawn


def vocabulary() -> dict[str, str]:
    """Name -> emoji."""
    with files("referent.mini").joinpath("vocabulary.tsv").open(encoding="utf-8") as lines:
        return dict(csv.reader(lines, delimiter="\t"))


def load_artwork(file: Path) -> dict[str, dict[str, Icon]]:
    """Style -> name -> icon."""
    artwork: dict[str, dict[str, Icon]] = {}
    with np.load(file) as arrays:
        for key in arrays.files:
            style, name = key.split(":")
            artwork.setdefault(style, {})[name] = arrays[key]
    return artwork


def rasterise(downloads: Path) -> Iterator[tuple[str, Icon]]:
    """Yield ("style:name", icon) for every icon that its package has."""
    drawers = {
        "noto": _font(next(downloads.rglob("NotoColorEmoji.ttf"))),
        "fluent3d": _file(next(downloads.glob("*fluent-emoji-3d*/package/assets")), ".webp"),
        "fluentflat": _svg(next(downloads.glob("*fluent-emoji-flat*/package/assets"))),
        "twitter": _file(next(downloads.glob("emoji-datasource-twitter*/package/img/twitter/64")), ".png"),
    }
    for style, draw in drawers.items():
        for name, emoji in tqdm(vocabulary().items(), desc=style):
            image = draw(emoji)
            box = image and image.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
            if image and box:
                icon = image.crop(box)
                icon.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
                yield f"{style}:{name}", np.asarray(icon)


def _font(file: Path) -> Callable[[str], Image.Image | None]:
    font = ImageFont.truetype(str(file), 109)  # the one size of this bitmap font

    def draw(emoji: str) -> Image.Image | None:
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((10, 10), emoji, font=font, embedded_color=True)
        return canvas

    return draw


def _file(folder: Path, suffix: str) -> Callable[[str], Image.Image | None]:
    def draw(emoji: str) -> Image.Image | None:
        path = _find(folder, emoji, suffix)
        return Image.open(path).convert("RGBA") if path else None

    return draw


def _svg(folder: Path) -> Callable[[str], Image.Image | None]:
    import resvg_py

    def draw(emoji: str) -> Image.Image | None:
        path = _find(folder, emoji, ".svg")
        if path is None:
            return None
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=MAX_SIDE, height=MAX_SIDE)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

    return draw


def _find(folder: Path, emoji: str, suffix: str) -> Path | None:
    """Files are named by code points in hex, with or without the emoji variation selector."""
    stem = "-".join(f"{ord(character):04x}" for character in emoji if character != "\ufe0f")
    return next((path for name in (stem, stem + "-fe0f") if (path := folder / (name + suffix)).exists()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    icons = dict(rasterise(arguments.downloads))
    np.savez_compressed(arguments.out, **icons)
    print(f"{len(icons)} icons -> {arguments.out}")


if __name__ == "__main__":
    main()
