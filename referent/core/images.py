"""Decodes image files safely; sizes are (width, height).

Training, evaluation and the gateway all decode images here.
"""

import io
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image

from referent.core.headers import SIDEWAYS, Bytes, Header, format_of, read_header, without_metadata
from referent.core.interpreter import TURN

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif")
MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535  # JPEG's limit; resizing takes memory in proportion to a side's length
MAX_SCANS = 30  # of a JPEG; about ten are usual, and each is a pass over all pixels, even if it has few bytes
MAX_DECODE_BYTES = 600 * 10**6
AVIF_BYTES_PER_PIXEL = 10
AVIF_APART_PIXELS = 1_000_000  # decoding more holds the interpreter for longer than others can wait
BAND_PIXELS = 2**20
ORIENTATION = "orientation"
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
APART = """
import sys, io
from PIL import Image
image = Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=["AVIF"])
sys.stdout.buffer.write(image.tobytes())
"""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # callers decode in threads of their own


class ImageError(ValueError):
    """The bytes are not a usable image; the message names the reason and the remedy."""


class ImageFormatError(ImageError):
    """The bytes are not JPEG, PNG, WebP or AVIF."""


class ImageTooLargeError(ImageError):
    """The header announces more than a limit allows: pixels, a side, or memory for decoding."""


class ExhaustedError(RuntimeError):
    """No process, file or memory is left to decode the image with; the same image may be decoded later."""


class DecodeTimeoutError(TimeoutError):
    """The time for decoding was over."""


class Picture(NamedTuple):
    """An image as a model needs it, perhaps in fewer pixels than it has."""

    pixels: Image.Image  # RGB
    size: tuple[int, int]  # (width, height) of the whole image; boxes are in its pixels


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, until: float = math.inf) -> Image.Image:
    """Decode JPEG, PNG, WebP or AVIF bytes (first frame) into RGB as a browser shows it: EXIF orientation applied,
    transparency on white, 16 bits reduced to 8, CMYK converted; colour profiles are not applied.

    The cost is read from the header and checked before any pixel is decoded. With `until`, a time of
    `time.monotonic()`, decoding ends by then; what would hold the interpreter for long is done in another process.
    Raises `ImageError`, `DecodeTimeoutError`, `ExhaustedError`.
    """
    return decode_reduced(data, lambda size: 1, max_pixels, until).pixels


def decode_reduced(
    data: bytes, reduction: Callable[[tuple[int, int]], int], max_pixels: int = MAX_PIXELS, until: float = math.inf
) -> Picture:
    """As `decode_image`; a JPEG of (width, height) is decoded at 1 / `reduction(size)` of its sides: 1, 2, 4 or 8."""
    image = _opened(data, max_pixels, until)
    size = image.size
    if (by := reduction(size)) > 1:
        image.draft("RGB", (size[0] // by, size[1] // by))  # does nothing to other formats
    return _decoded(image, size)


def image_header(data: Bytes) -> Header:
    """The header of an image file: format, size, orientation and memory for decoding. Raises `ImageError`."""
    format = format_of(data)
    if format == "HEIC":
        raise ImageFormatError("a HEIC image, which few programs read: save it as JPEG")
    if format is None:
        raise ImageFormatError(f"not a {', '.join(FORMATS)} image ({len(data)} bytes)")
    if format == "AVIF":
        image = _pillow(io.BytesIO(data), format)
        # Pillow puts the orientation of AVIF's own boxes there, which is the one that browsers apply
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        return Header(format, image.size, turned if turned in UPRIGHT else 1, bytes_per_pixel=AVIF_BYTES_PER_PIXEL)
    with _damaged(format):
        return read_header(data)


def _opened(data: bytes, max_pixels: int, until: float = math.inf) -> Image.Image:
    """The image, of which only the header has been read; its orientation is in its `info`."""
    header = image_header(data)
    _check_cost(header, max_pixels)
    if header.format == "AVIF":
        image = _pillow(io.BytesIO(data), header.format)
        if until < math.inf and math.prod(header.size) > AVIF_APART_PIXELS:
            image = _decoded_apart(data, image.mode, image.size, until)
    else:
        with _damaged(header.format):
            lean, scans = without_metadata(data, header.format)
        if scans > MAX_SCANS:
            raise ImageError(f"the JPEG image has {scans} scans; the limit is {MAX_SCANS}: save it anew")
        image = _pillow(_File(lean, until), header.format)
    if image.size != header.size:
        raise ImageError(f"the {header.format} image is truncated or damaged: it states two sizes")
    image.info[ORIENTATION] = header.orientation
    return image


def _check_cost(header: Header, max_pixels: int) -> None:
    (width, height), megabytes = header.size, header.decoding_bytes / 1e6
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"image is {width * height / 1e6:.1f} MP ({width}x{height}); "
            f"the limit is {max_pixels / 1e6:.1f} MP: send a smaller one"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(f"image is {width}x{height}; the limit of a side is {MAX_SIDE}: send a smaller one")
    if header.decoding_bytes > MAX_DECODE_BYTES:
        raise ImageTooLargeError(
            f"the {header.format} image of {width}x{height} takes {megabytes:.0f} MB to decode; "
            f"the limit is {MAX_DECODE_BYTES / 1e6:.0f} MB: send a smaller one, or save it as a plain JPEG"
        )


class _File(io.BytesIO):
    """Bytes that can be read until a time; reading later raises, which stops the decoder."""

    def __init__(self, data: bytes, until: float) -> None:
        super().__init__(data)
        self._until = until

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._until:
            raise DecodeTimeoutError("the time for decoding is over")
        return super().read(size)


@contextmanager
def _damaged(format: str) -> Iterator[None]:
    """Turns whatever a parser raises for a damaged file (OSError, SyntaxError, struct.error) into `ImageError`."""
    try:
        yield
    except (DecodeTimeoutError, ImageError):
        raise
    except Exception as error:
        raise ImageError(f"the {format} image is truncated or damaged: {error}") from error


def _pillow(file: io.BytesIO, format: str) -> Image.Image:
    with _damaged(format):
        return Image.open(file, formats=[format])


def _decoded_apart(data: bytes, mode: str, size: tuple[int, int], until: float) -> Image.Image:
    """The pixels, decoded by a process that ends when the time is over."""
    command = [sys.executable, "-I", "-c", APART]
    try:
        pixels = subprocess.run(command, input=data, capture_output=True, timeout=until - time.monotonic(), check=True)
        return Image.frombytes(mode, size, pixels.stdout)
    except subprocess.TimeoutExpired:
        raise DecodeTimeoutError("the time for decoding is over") from None
    except subprocess.CalledProcessError as error:
        raise ImageError("the AVIF image is truncated or damaged") from error
    except OSError as error:  # no process, no descriptor or no memory is left for it
        raise ExhaustedError(f"the image cannot be decoded now: {error}") from error


def _decoded(image: Image.Image, size: tuple[int, int]) -> Picture:
    """The pixels of an opened image of `size`, and that size as shown."""
    orientation = image.info[ORIENTATION]
    with _damaged(image.format or "AVIF"):
        with TURN if image.format == "AVIF" else nullcontext():
            image.load()
        upright = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
        return Picture(to_rgb(upright), size[::-1] if orientation in SIDEWAYS else size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparency on white, 16 bits reduced to 8; in bands, so that no third copy of a large image is made."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    shown = Image.new("RGB", image.size, "white")
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if band.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
            band = Image.fromarray((np.asarray(band).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        mask = band.convert("RGBA") if band.has_transparency_data else None
        shown.paste(mask or band.convert("RGB"), (0, top), mask)
    return shown
