"""From the bytes of a photograph to the model's square, centre crop, against CLIPImageProcessor: time and pixels.

    python -m benchmarks.preprocess [--photos FOLDER] [--sizes 0.3 2 12 48]

Photographs come from --photos or $REFERENT_TEST_DATA/cards/images. None of them has 12 megapixels, so an image of each
size is made from them in two ways: `mosaic` puts them side by side, which has more detail in every pixel than a
photograph of that size, and `enlarged` is one of them scaled up, which has less. The time of CLIPImageProcessor
includes normalising, which ours leaves to the model.
"""

import io
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.lib.measuring import Report, Row, alternate, arguments_of, lines, median, over_rounds, spread
from referent.core.transform import ImageTransform

SIDE = 336
SIZES = {0.3: (640, 480), 2: (1600, 1200), 12: (4000, 3000), 48: (8000, 6000)}  # megapixels -> width, height
FORMATS = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 1}, "WEBP": {"quality": 90, "method": 2}}
KINDS = ("mosaic", "enlarged")
OURS, CLIP = "ours", "CLIPImageProcessor"


def photographs(folder: Path | None) -> list[Path]:
    """The photographs to use, in a fixed order. Raises ValueError where there are none."""
    if folder is None and (data := os.environ.get("REFERENT_TEST_DATA")):
        folder = Path(data, "cards", "images")
    files = sorted(folder.glob("*.[jJ][pP]*[gG]")) if folder else []
    if not files:
        raise ValueError(
            f"no photographs (*.jpg) in {folder or '$REFERENT_TEST_DATA, which is not set'}: give --photos"
        )
    random.Random(0).shuffle(files)
    return files


def made_of(files: Sequence[Path], kind: str, size: tuple[int, int]) -> Image.Image:
    """An RGB image of that size (width, height)."""
    if kind == "enlarged":
        return Image.open(files[0]).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    whole, x, y, row_height, turn = Image.new("RGB", size), 0, 0, 0, 0
    while y < size[1]:
        photo = Image.open(files[turn % len(files)]).convert("RGB")
        whole.paste(photo, (x, y))
        x, row_height, turn = x + photo.width, max(row_height, photo.height), turn + 1
        if x >= size[0]:
            x, y, row_height = 0, y + row_height, 0
    return whole


def encoded(image: Image.Image, format: str) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **FORMATS[format])
    return buffer.getvalue()


class Comparison:
    """Ours and CLIPImageProcessor, set to the same square."""

    def __init__(self) -> None:
        from transformers.models.clip import CLIPImageProcessorPil  # of the two the one without torchvision

        self.ours = ImageTransform(mode="center_crop", size=SIDE)
        self.clip = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})

    def run_ours(self, data: bytes) -> np.ndarray:
        return self.ours.apply(self.ours.decode(data))

    def run_clip(self, data: bytes, **options: bool) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = self.clip(images=image, return_tensors="np", **options)["pixel_values"][0]
        return np.asarray(pixels).transpose(1, 2, 0)

    def differences(self, data: bytes) -> np.ndarray:
        """Of 255, by pixel and channel."""
        theirs = self.run_clip(data, do_rescale=False, do_normalize=False)
        return np.abs(self.run_ours(data).astype(np.float64) - theirs)

    def row(self, data: bytes, rounds: int, calls: int) -> Row:
        """Times of both and how their pixels differ."""
        times = alternate({OURS: lambda: self.run_ours(data), CLIP: lambda: self.run_clip(data)}, rounds, calls)
        ratios = over_rounds(lambda clip, ours: clip / ours, times[CLIP], times[OURS])
        difference = self.differences(data)
        return (
            {"MB": len(data) / 1e6, "ours ms": median(times[OURS]), "CLIPImageProcessor ms": median(times[CLIP])}
            | {"times as fast": median(times[CLIP]) / median(times[OURS]), "by round": spread(ratios)}
            | {"max difference of 255": difference.max(), "mean": difference.mean()}
            | {"share over 8": float((difference > 8).mean())}
        )


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--photos", type=Path, help="folder of JPEG photographs")
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SIZES), help="megapixels")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=4, help="in a block")
    arguments = parser.parse_args()
    try:
        files, comparison = photographs(arguments.photos), Comparison()
    except ValueError as error:
        parser.error(str(error))
    report, rows = Report("preprocess", arguments.out), list[Row]()
    for megapixels in arguments.sizes:
        size = SIZES.get(megapixels) or (
            4 * math.isqrt(int(megapixels * 1e6 / 12)),
            3 * math.isqrt(int(megapixels * 1e6 / 12)),
        )
        for kind in KINDS:
            image = made_of(files, kind, size)
            for format in arguments.formats:
                key = {"megapixels": megapixels, "made": kind, "format": format}
                rows.append(key | comparison.row(encoded(image, format), arguments.rounds, arguments.calls))
    report.add(
        f"{SIDE} pixels, of {len(files)} photographs in {files[0].parent.parent.name}, first {files[0].name}", rows
    )
    mosaics = [row for row in rows if row["made"] == KINDS[0]]
    report.chart(lambda axes: lines(axes, mosaics, "megapixels", "times as fast", "format", xscale="log"))


if __name__ == "__main__":
    main()
