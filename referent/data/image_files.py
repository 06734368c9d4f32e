"""Image files of a dataset: their size as a viewer shows them, and whether they can be decoded."""

from collections.abc import Callable
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path

from referent.core.images import decode_image, image_header
from referent.data.records import RowError

REMEMBERED = 65_536  # files, so that memory stays bounded whatever the number of rows
_Size = tuple[int, int]


def upright_size(file: Path) -> _Size:
    """(width, height) from the header, EXIF orientation applied. Raises `RowError`."""
    return _answer(_header_size(file))


def decoded_size(file: Path) -> _Size:
    """(width, height) after decoding every pixel. Raises `RowError`."""
    return _answer(_pixel_size(file))


def _answer(found: _Size | str) -> _Size:
    if isinstance(found, str):
        raise RowError(found)
    return found


def _remembered(measure: Callable[[Path], _Size]) -> Callable[[Path], _Size | str]:
    """Remembers sizes and errors of the latest files, since an image has many expressions."""

    @lru_cache(maxsize=REMEMBERED)
    def size_or_fault(file: Path) -> _Size | str:
        try:
            return measure(file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return "missing image"
        except (OSError, ValueError):  # ImageError, or a name that no file can have
            return "image cannot be decoded"

    return size_or_fault


@_remembered
def _header_size(file: Path) -> _Size:
    with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        return image_header(data).shown_size


@_remembered
def _pixel_size(file: Path) -> _Size:
    return decode_image(file.read_bytes()).size
