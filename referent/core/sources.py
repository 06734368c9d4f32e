"""What callers give as an image: a file, its bytes, a picture, an array or a URL."""

import io
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from referent.core.images import decode_image, to_rgb

URL_SCHEMES = ("http://", "https://")

# a path, a URL, an image file's bytes, a picture, or (H, W, 3) RGB
ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]


def is_url(source: ImageSource) -> TypeGuard[str]:
    return isinstance(source, str) and source.lower().startswith(URL_SCHEMES)


def encoded(source: ImageSource) -> bytes:
    """The image file: as it is where there is one, PNG of pixels. Raises OSError, and ValueError for other arrays."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    buffer = io.BytesIO()
    # pixels are taken as they lie: an orientation that the picture still carries must not turn them a second time
    _rgb(source).save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()


def picture_of(source: ImageSource) -> Image.Image:
    """The RGB image in which boxes count. Raises OSError, `ImageError`, and ValueError for a URL."""
    if is_url(source):
        raise ValueError(f"the image was given by URL: fetch {source} and give it here")
    return decode_image(encoded(source)) if isinstance(source, str | Path | bytes) else _rgb(source)


def _rgb(source: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
        shape = "x".join(map(str, source.shape))
        raise ValueError(f"the array is {shape} {source.dtype}; an image is (height, width, 3) RGB of uint8")
    return Image.fromarray(source)
