"""Image files of a dataset: their size as a viewer shows them, and whether they can be decoded at all."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import ExifTags, Image

from referent.core.images import FORMATS, ImageError, decode_image
from referent.data.records import RowError

REMEMBERED = 65_536  # files, so that memory stays bounded whatever the number of rows
Size = tuple[int, int]


def upright_size(file: Path) -> Size:
    """(width, height) from the header, EXIF orientation applied. Raises `RowError`."""
    return _answer(_header_size(file))


def decoded_size(file: Path) -> Size:
    """(width, height) after decoding every pixel. Raises `RowError`."""
    return _answer(_pixel_size(file))


def _answer(found: Size | str) -> Size:
    if isinstance(found, str):
        raise RowError(found)
    return found


def _remembered(measure: Callable[[Path], Size]) -> Callable[[Path], Size | str]:
    """Sizes and faults of the files asked for last: an image has many expressions."""

    @lru_cache(maxsize=REMEMBERED)
    def size_or_fault(file: Path) -> Size | str:
        try:
            return measure(file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return "missing image"
        except (OSError, ValueError):  # ImageError, or a name that no file can have
            return "image cannot be decoded"

    return size_or_fault


@_remembered
def _header_size(file: Path) -> Size:
    try:
        with Image.open(file, formats=FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except OSError:
        raise
    except Exception as error:  # parsers of untrusted headers raise whatever they hit
        raise ImageError(str(error)) from error


@_remembered
def _pixel_size(file: Path) -> Size:
    return decode_image(file.read_bytes()).size
