"""Image files into pixels, safely; sizes are (width, height).

Training, evaluation and the gateway all decode images here.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
MAX_SCANS = 30  # of a JPEG; some ten are usual, and each is a pass over all pixels however few its bytes
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ImageError(ValueError):
    """The bytes are no image that can be used; the message names the reason and the remedy."""


class ImageFormatError(ImageError):
    """The bytes are not JPEG, PNG or WebP."""


class ImageTooLargeError(ImageError):
    """The header announces more pixels than the limit."""


class Picture(NamedTuple):
    """An image as a model needs it, perhaps in fewer pixels than it has."""

    pixels: Image.Image  # RGB
    size: tuple[int, int]  # of the whole image, in which boxes count


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode JPEG, PNG or WebP bytes (first frame) into RGB as a viewer shows it: EXIF orientation applied,
    transparency on white, 16 bits reduced to 8, CMYK converted; colour profiles are not applied.

    The size is read from the header and checked before any pixel is decoded. Raises `ImageError`.
    """
    return decode_reduced(data, lambda size: 1, max_pixels).pixels


def decode_reduced(data: bytes, reduction: Callable[[tuple[int, int]], int], max_pixels: int = MAX_PIXELS) -> Picture:
    """As `decode_image`; a JPEG of (width, height) is decoded at 1 / `reduction(size)` of its sides: 1, 2, 4 or 8."""
    image = _opened(data, max_pixels)
    size = image.size
    if (by := reduction(size)) > 1:
        image.draft("RGB", (size[0] // by, size[1] // by))  # does nothing to other formats
    return _decoded(image, size)


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """The image, of which only the header has been read."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"image is too large: {error}") from error
    except (
        Exception
    ) as error:  # parsers of untrusted headers raise whatever they hit: OSError, SyntaxError, struct.error
        raise ImageFormatError(f"not a {', '.join(FORMATS)} image ({len(data)} bytes)") from error
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"image is {image.width * image.height / 1e6:.1f} MP ({image.width}x{image.height}); "
            f"the limit is {max_pixels / 1e6:.1f} MP: send a smaller one"
        )
    if isinstance(image, JpegImageFile) and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ImageError(f"the JPEG image has {scans} scans; the limit is {MAX_SCANS}: save it anew")
    return image


def _decoded(image: Image.Image, size: tuple[int, int]) -> Picture:
    """The pixels of an opened image of `size`, and that size as shown."""
    try:
        image.load()
        sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        ImageOps.exif_transpose(image, in_place=True)
        return Picture(to_rgb(image), size[::-1] if sideways else size)
    except Exception as error:  # as above: broken pixel data or EXIF
        raise ImageError(f"the {image.format} image is truncated or damaged: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparency on white, 16 bits reduced to 8."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")
