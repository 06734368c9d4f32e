"""Artwork for synthetic scenes: icons of many drawing styles, rasterised once into one .npz.

    python -m referent.mini.artwork DOWNLOADS artwork.npz [--sheet SHEET.png]

DOWNLOADS holds what runs/mini.sh fetches. docs/training.md has a table of the styles with their licences.
"""

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

EVALUATED_STYLES = ("noto", "fluent3d", "fluentflat")  # of the evaluation sets of scenes, which must not change
UNSEEN_STYLE = "twitter"  # of the test; never trained on
VALIDATION_STYLE = "fxemoji"  # not trained on either: choices by validation must not depend on the test's style
ICONIFY = {  # style -> package of @iconify-json
    "notov1": "noto-v1", "emojione": "emojione", "streamline": "streamline-emojis", "fxemoji": "fxemoji",
    "highcontrast": "fluent-emoji-high-contrast", "monotone": "emojione-monotone", "phosphor": "ph", "lucide": "lucide",
    "tabler": "tabler", "mdi": "mdi", "gameicons": "game-icons",
}  # fmt: skip
INK_STYLES = ("notomono", "highcontrast", "monotone", "phosphor", "lucide", "tabler", "mdi", "gameicons")
COLOUR_STYLES = ("notov1", "emojione", "streamline")
TRAIN_STYLES = (*EVALUATED_STYLES * 3, *COLOUR_STYLES * 2, *INK_STYLES)  # as often as it stands here
MAX_SIDE = 160

Icon = npt.NDArray[np.uint8]  # (h, w, 4) RGBA, cropped to what is drawn; of ink styles black on white, or on nothing
Draw = Callable[[str, str], Image.Image | None]  # name, emoji -> RGBA


def vocabulary() -> dict[str, str]:
    """Name -> emoji."""
    return dict(_table("vocabulary.tsv"))


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
    for style in (*EVALUATED_STYLES, UNSEEN_STYLE, "notomono", *ICONIFY):
        draw = drawer(downloads, style)
        for name, emoji in tqdm(vocabulary().items(), desc=style):
            icon = draw(name, emoji)
            if icon:
                yield f"{style}:{name}", np.asarray(icon)


def drawer(downloads: Path, style: str) -> Draw:
    """The function that draws a style's icons, cropped to the drawing."""
    match style:
        case "noto":
            draw = _font(_the(downloads, "noto/**/NotoColorEmoji.ttf"), 109)  # the one size of this bitmap font
        case "notomono":
            draw = _font(_the(downloads, "*noto-emoji*/**/NotoEmoji_400Regular.ttf"), 120)
        case "fluent3d":
            draw = _file(_the(downloads, "*fluent-emoji-3d*/package/assets"), ".webp")
        case "fluentflat":
            draw = _svg(_the(downloads, "lobehub-fluent-emoji-flat*/package/assets"))
        case "twitter":
            draw = _file(_the(downloads, "emoji-datasource-twitter*/package/img/twitter/64"), ".png")
        case _:
            names_of_emoji = _iconify_file(downloads, "noto", "chars.json")
            package = ICONIFY[style]
            draw = _iconify(package, _iconify_file(downloads, package, "icons.json"), names_of_emoji)

    def draw_cropped(name: str, emoji: str) -> Image.Image | None:
        image = draw(name, emoji)
        box = image and image.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
        if not image or not box:
            return None
        icon = image.crop(box)
        icon.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return _inked(icon) if style in INK_STYLES else icon

    return draw_cropped


def _the(downloads: Path, pattern: str) -> Path:
    found = sorted(downloads.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{downloads} has {len(found)} of {pattern}: runs/mini.sh fetches what belongs there")
    return found[0]


def _table(file: str) -> list[list[str]]:
    with files("referent.mini").joinpath(file).open(encoding="utf-8") as lines:
        return list(csv.reader(lines, delimiter="\t"))


def _font(file: Path, size: int) -> Draw:
    font = ImageFont.truetype(str(file), size)

    def draw(name: str, emoji: str) -> Image.Image | None:
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((10, 10), emoji, font=font, fill="black", embedded_color=True)
        return canvas

    return draw


def _file(folder: Path, suffix: str) -> Draw:
    def draw(name: str, emoji: str) -> Image.Image | None:
        path = _find(folder, emoji, suffix)
        return Image.open(path).convert("RGBA") if path else None

    return draw


def _svg(folder: Path) -> Draw:
    def draw(name: str, emoji: str) -> Image.Image | None:
        path = _find(folder, emoji, ".svg")
        return _rendered(svg_path=str(path)) if path else None

    return draw


def _find(folder: Path, emoji: str, suffix: str) -> Path | None:
    """Files are named by code points in hex, with or without the emoji variation selector."""
    stem = _code_points(emoji)
    return next((path for name in (stem, stem + "-fe0f") if (path := folder / (name + suffix)).exists()), None)


def _code_points(emoji: str) -> str:
    return "-".join(f"{ord(character):04x}" for character in emoji if character != "\ufe0f")


def _iconify_file(downloads: Path, package: str, name: str) -> dict[str, Any]:
    found = _the(downloads, f"iconify-json-{package}-[0-9]*/package/{name}")
    contents: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return contents


def _iconify(package: str, icons: Mapping[str, Any], emoji_names: Mapping[str, str]) -> Draw:
    """Icons by the emoji's name or the name itself, unless icon_names.tsv names one ("-": none of the set fits)."""
    chosen = {name: icon for of, name, icon in _table("icon_names.tsv") if of == package}

    def draw(name: str, emoji: str) -> Image.Image | None:
        stem = _code_points(emoji)
        called = emoji_names.get(stem) or emoji_names[f"{stem}-fe0f"]
        usual = (called, f"{called}-1", f"{called}-face", f"{called}-face-1", name.replace(" ", "-"))
        for icon in [chosen[name]] if name in chosen else usual:
            parent = icons.get("aliases", {}).get(icon, {}).get("parent", icon)
            if parent in icons["icons"]:
                return _rendered(svg_string=_svg_of(icons, icons["icons"][parent]))
        return None

    return draw


def _svg_of(icons: Mapping[str, Any], icon: Mapping[str, Any]) -> str:
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    left, top, width, height = (icon.get(key, icons.get(key, default)) for key, default in defaults.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _rendered(**svg: str) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(**svg, width=MAX_SIDE, height=MAX_SIDE)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _inked(icon: Image.Image) -> Image.Image:
    """Black ink, with white in the areas that it encloses."""
    from scipy.ndimage import binary_fill_holes

    ink = np.asarray(icon)[..., 3]
    shape = np.maximum(ink, 255 * binary_fill_holes(ink > 96).astype(np.uint8))
    white = (255 - ink.astype(np.uint16) * 255 // np.maximum(shape, 1)).astype(np.uint8)
    return Image.fromarray(np.dstack([white, white, white, shape]))


def contact_sheet(artwork: Mapping[str, Mapping[str, Icon]], names: Sequence[str], side: int = 48) -> Image.Image:
    """Styles in columns, names in rows, to see whether icons are what their names say."""
    sheet = Image.new("RGB", (120 + side * len(artwork), 16 + side * len(names)), "#cde")
    pen = ImageDraw.Draw(sheet)
    for column, (style, icons) in enumerate(artwork.items()):
        pen.text((122 + side * column, 2), style[:8], fill="black")
        for row, name in enumerate(names):
            pen.text((2, 30 + side * row), name, fill="black")
            if name in icons:
                icon = Image.fromarray(icons[name])
                icon.thumbnail((side - 4, side - 4))
                sheet.paste(icon, (122 + side * column, 18 + side * row), icon)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sheet", type=Path, help="also a picture of all icons, names by styles")
    arguments = parser.parse_args()
    try:
        icons = dict(rasterise(arguments.downloads))
    except OSError as error:
        parser.error(str(error))
    np.savez_compressed(arguments.out, **icons)
    print(f"{len(icons)} icons -> {arguments.out}")
    if arguments.sheet:
        contact_sheet(load_artwork(arguments.out), list(vocabulary())).save(arguments.sheet)


if __name__ == "__main__":
    main()
