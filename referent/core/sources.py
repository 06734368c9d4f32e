"""Reads images in every form that callers give them: paths, URLs, bytes, open files, pictures and arrays."""

import errno
import io
import os
import stat
import sys
from binascii import a2b_base64
from pathlib import Path
from typing import BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from referent.core.images import ImageTooLargeError, decode_image, to_rgb

URL_SCHEMES = ("http://", "https://")
STANDARD_INPUT = "-"  # on command lines
MAX_FILE_BYTES = 2**29  # far above the limit of any service; a larger file is not even read
SHOWN_CHARACTERS = 80  # of a name in an error: a caller may have given a whole image in base64 as the name
WHITE_SPACE = b" \t\r\n\f\v"
PIECE = 1 << 18  # characters of base64 decoded at a time, since decoding holds the interpreter
NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
WANTED = (
    "an image is a path, an http(s) or data URL, the bytes of an image file, a file opened with 'rb', a PIL image, "
    "or a (height, width, 3) RGB array of uint8"
)

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]


class Base64Error(ValueError):
    """The text is not base64."""


def is_url(source: object) -> TypeGuard[str]:
    """Whether it is an http(s) URL, which has to be fetched."""
    return isinstance(source, str) and source.lower().startswith(URL_SCHEMES)


def from_argument(argument: str) -> ImageSource:
    """The image that a command-line argument names; `-` reads standard input."""
    return sys.stdin.buffer.read() if argument == STANDARD_INPUT else argument


def from_base64(text: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Base64, with or without line breaks, or a base64 data URL -> bytes; needs memory for text and result only.

    Raises `Base64Error`, and `ImageTooLargeError` for more bytes than the limit.
    """
    start = text.find(",") + 1 if text[:5].lower() == "data:" else 0
    if start and not text[:start].endswith(";base64,"):
        raise Base64Error("the image is a data URL without ;base64,: send its bytes in base64")
    image, rest = bytearray(), b""
    try:
        for at in range(start, len(text), PIECE):
            digits = rest + text[at : at + PIECE].encode("ascii").translate(None, WHITE_SPACE)
            whole = len(digits) // 4 * 4
            if (len(image) % 3 and whole) or b"===" in digits:  # Python 3.11 accepts too much padding
                raise ValueError("its padding is wrong")
            image += a2b_base64(digits[:whole], strict_mode=True)
            rest = digits[whole:]
            if len(image) > max_bytes:
                raise ImageTooLargeError(f"the image is too long; the limit is {max_bytes} bytes: send a smaller one")
        if rest:
            raise ValueError("it is cut off, or lacks its padding")
    except ImageTooLargeError:
        raise
    except ValueError as error:
        raise Base64Error(f"the image is not valid base64: {error}") from None
    return bytes(image)


def held(source: ImageSource) -> str | os.PathLike[str] | bytes | Image.Image:
    """The source in a form that can be read more than once: an open file is read (from its start, if it is seekable),
    and an array becomes a picture. Raises ValueError for what is not an image, and OSError."""
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, np.ndarray | Image.Image):
        return _rgb(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return from_base64(source)
    if isinstance(source, str | os.PathLike | bytes):
        return source
    if hasattr(source, "read"):
        return _all_of(source)
    raise ValueError(f"{type(source).__name__} {_shown(source)} is not an image: {WANTED}")


def encoded(source: ImageSource) -> bytes:
    """The bytes of the image file; pixels are encoded as PNG.

    Raises OSError for a file that can't be read, and ValueError for what is not an image.
    """
    given = held(source)
    if isinstance(given, bytes):
        return given
    if isinstance(given, str | os.PathLike):
        return _read(given)
    buffer = io.BytesIO()
    # without EXIF: an orientation that the picture still has must not turn the pixels a second time
    given.save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()


def picture_of(source: ImageSource) -> Image.Image:
    """The RGB image whose pixels boxes are in. Raises OSError, and ValueError for a URL or what is not an image."""
    if is_url(source):
        raise ValueError(f"the image was given by URL: fetch {source} and give it here")
    given = held(source)
    return given if isinstance(given, Image.Image) else decode_image(encoded(given))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"


def _read(path: str | os.PathLike[str]) -> bytes:
    shown = _shown(os.fspath(path))
    try:
        status = os.stat(path)
        is_too_large = stat.S_ISREG(status.st_mode) and status.st_size > MAX_FILE_BYTES
        data = b"" if is_too_large else Path(path).read_bytes()
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{shown} is a folder: give an image in it (a folder is for referent batch)") from error
    except PermissionError as error:
        raise PermissionError(f"{shown} may not be read by this user: change its permissions") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in NO_SUCH_FILE:
            raise
        raise FileNotFoundError(f"there is no file {shown}: {WANTED}") from error
    if is_too_large:
        raise ImageTooLargeError(f"{shown} is too large for an image: {status.st_size / 1e6:.0f} MB")
    return data


def _all_of(stream: BinaryIO) -> bytes:
    try:
        if stream.seekable():
            stream.seek(0)  # if it was just written, its position is at the end
        content = stream.read()
    except Exception as error:  # a file may be of any class, and a closed one may raise anything
        raise ValueError(f"{_shown(stream)} can't be read ({error}): {WANTED}") from error
    if not isinstance(content, bytes):
        raise ValueError(f"{_shown(stream)} is a file of text: {WANTED}")
    return content


def _rgb(source: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(source, Image.Image):
        try:
            source.load()
            return to_rgb(source)
        except Exception as error:  # a picture whose file is closed or damaged fails in many ways
            raise ValueError(
                f"the pixels of {_shown(source)} can't be read ({error}): use it before its file is closed, or give "
                "the file"
            ) from error
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
        shape = "x".join(map(str, source.shape))
        raise ValueError(f"the array is {shape} {source.dtype}; an image is (height, width, 3) RGB of uint8")
    return Image.fromarray(source)
