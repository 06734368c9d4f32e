"""What an image file's header says before a pixel is decoded: format, size, orientation and cost of decoding.

The parts of a file (segments of JPEG, chunks of PNG and WebP) are skipped without reading them, so that large metadata
costs nothing; `without_metadata` removes it before decoding. The orientation is the one that browsers apply: the first
such entry of EXIF, and no other metadata.
"""

import re
import struct
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

Bytes = bytes | mmap
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
MAX_PARTS = 50_000  # of a file; about ten are usual, some thousands in a PNG that was written in small chunks
STEP = 1 << 18  # bytes searched at a time, since a search holds the interpreter

JPEG_MARK = re.compile(rb"\xff[^\x00\xff]")  # bytes before it are junk, or fill bytes
SCAN_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # restart marks belong to a scan
SOI, EOI, SOS, APP0, APP1, APP14, COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xFE
NO_LENGTH = {0x01, SOI, *range(0xD0, 0xD8)}
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
JPEG_METADATA = {*range(APP0, APP0 + 16), COM} - {APP0, APP14}  # those two tell how colours are stored
RGB = 2  # colour type of a PNG
PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
WEBP_PIXELS = {b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
EXIF_MARK = b"Exif\0\0"
ORIENTATION_TAG, SHORT = 0x0112, 3


class HeaderError(ValueError):
    """The file has a known format, but its parts make no sense; the message says what is wrong."""


class Header(NamedTuple):
    """`size` is (width, height) as stored; `orientation` is EXIF's, 1 to 8."""

    format: str
    size: tuple[int, int]
    orientation: int = 1
    bytes_per_pixel: float = 4  # memory that decoding takes, without turning; measured

    @property
    def decoding_bytes(self) -> int:
        """Memory that decoding takes at most."""
        turned = 4 if self.orientation > 1 else 0
        return round(self.size[0] * self.size[1] * (self.bytes_per_pixel + turned))

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) once turned the right way up."""
        return self.size[::-1] if self.orientation in SIDEWAYS else self.size


class FilePart(NamedTuple):
    """A segment or chunk: data[start:end], whose content is data[content:end]."""

    name: int | bytes
    start: int
    content: int
    end: int


def format_of(data: Bytes) -> str | None:
    """JPEG, PNG, WEBP, AVIF or HEIC by the first bytes; None for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        length = min(max(int.from_bytes(data[:4]), 16), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIC" if brands & HEIC_BRANDS else None
    return None


def read_header(data: Bytes) -> Header:
    """The header of a JPEG, PNG or WebP file. Raises `HeaderError`."""
    readers = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp}
    try:
        header = readers[format_of(data) or ""](data)
    except KeyError:
        raise HeaderError(f"it is none of {', '.join(readers)}") from None
    except (struct.error, IndexError) as error:
        raise HeaderError("its header is cut off") from error
    if not all(header.size):
        raise HeaderError(f"it is {header.size[0]}x{header.size[1]} pixels")
    return header


def without_metadata(data: bytes, format: str) -> tuple[bytes, int]:
    """The file with only what its first picture needs: no metadata, no fill bytes, nothing after it. Also the number of
    passes over its pixels: the scans of a JPEG. Raises `HeaderError`.
    """
    if format == "JPEG":
        *parts, last = _jpeg_segments(data)
        kept = [data[part.start : part.end] for part in parts if part.name not in JPEG_METADATA]
        scans, end = _scans(data, last)
        return b"".join([b"\xff\xd8", *kept, data[last.start : end]]), scans
    if format == "PNG":
        kept = [data[part.start : part.end] for part in _png_chunks(data) if part.name in PNG_PIXELS]
        return data[:8] + b"".join(kept), 1
    kept, frames = [], 0
    for part in _webp_chunks(data):
        frames += part.name == b"ANMF"
        if part.name in WEBP_PIXELS and frames < 2:
            kept.append(data[part.start : part.end])
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, 1


def exif_orientation(exif: bytes) -> int:
    """1 to 8, from EXIF that begins with its TIFF header; 1 if it has none that browsers apply."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if not order or len(exif) < 8:
        return 1
    start = struct.unpack_from(f"{order}I", exif, 4)[0] + 2
    if start > len(exif):
        return 1
    [entries] = struct.unpack_from(f"{order}H", exif, start - 2)
    for at in range(start, min(start + 12 * entries, len(exif) - 11), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, at)
        if tag == ORIENTATION_TAG:
            return value if (kind, count) == (SHORT, 1) and 1 <= value <= 8 else 1
    return 1


def _jpeg(data: Bytes) -> Header:
    size, orientation, memory = None, 0, 4.0
    for part in _jpeg_segments(data):
        if part.name in FRAMES and not size:
            height, width, components = struct.unpack_from(">xHHB", data, part.content)
            size, memory = (width, height), 8.0 if components == 4 else 4.0
            if part.name in PROGRESSIVE:  # all coefficients, 2 bytes each, of components that may be smaller
                factors = [data[part.content + 7 + 3 * i] for i in range(components)]
                areas = [(factor >> 4) * (factor & 15) for factor in factors]
                memory += 2 * sum(areas) / max(1, *areas)
        elif part.name == APP1 and not orientation and data[part.content : part.content + 6] == EXIF_MARK:
            orientation = exif_orientation(data[part.content + 6 : part.end])
        elif part.name == SOS:
            return Header("JPEG", size or (0, 0), orientation or 1, memory)
    raise HeaderError("it has no picture data")


def _jpeg_segments(data: Bytes) -> Iterator[FilePart]:
    """The segments before the picture data, and the first scan's as the last."""
    at = 2
    for _ in range(MAX_PARTS):
        at = _find(JPEG_MARK, data, at)
        name = data[at + 1]
        if name in NO_LENGTH:
            at += 2
            continue
        if name == EOI:
            raise HeaderError("it ends before its picture data")
        [length] = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + max(length, 2)
        if end > len(data):
            raise HeaderError("its header is cut off")
        yield FilePart(name, at, at + 4, end)
        if name == SOS:
            return
        at = end
    raise HeaderError(f"it has more than {MAX_PARTS} parts")


def _scans(data: bytes, first: FilePart) -> tuple[int, int]:
    """The number of scans, and where the picture ends: a video may follow."""
    count, at = 1, first.end
    for _ in range(MAX_PARTS):
        try:
            at = _find(SCAN_MARK, data, at)
            name = data[at + 1]
            if name == EOI:
                return count, at + 2
            count += name == SOS
            at += 2 if name in NO_LENGTH else 2 + max(struct.unpack_from(">H", data, at + 2)[0], 2)
        except (HeaderError, struct.error):  # cut off: the decoder says so
            return count, len(data)
    raise HeaderError(f"it has more than {MAX_PARTS} parts")


def _find(mark: re.Pattern[bytes], data: Bytes, start: int) -> int:
    """Index of the next mark. Raises `HeaderError` if there is none."""
    for at in range(start, len(data), STEP):
        if found := mark.search(data, at, at + STEP + 1):
            return found.start()
    raise HeaderError("its header is cut off")


def _png(data: Bytes) -> Header:
    size, orientation, memory = (0, 0), 0, 4
    for part in _png_chunks(data):
        if part.name == b"IHDR":
            width, height, colour = struct.unpack_from(">IIxB", data, part.content)
            size, memory = (width, height), 4 if colour == RGB else 8
        elif part.name == b"tRNS":
            memory = 8
        elif part.name == b"eXIf" and not orientation:
            orientation = exif_orientation(data[part.content : part.end - 4])
        elif part.name == b"IDAT":
            return Header("PNG", size, orientation or 1, memory)
    raise HeaderError("it has no picture data")


def _png_chunks(data: Bytes) -> Iterator[FilePart]:
    """Chunks with name, length and checksum; a last one that is cut off ends with the file."""
    return _chunks(data, 8, ">I4s", checksum=4)


def _webp(data: Bytes) -> Header:
    size, orientation = None, 0
    for part in _webp_chunks(data):
        at = part.content
        if part.name == b"VP8X" and not size:
            width, height = (int.from_bytes(data[at + 4 + i : at + 7 + i], "little") + 1 for i in (0, 3))
            size = (width, height)
        elif part.name == b"VP8 " and not size:
            width, height = struct.unpack_from("<HH", data, at + 6)
            size = (width & 0x3FFF, height & 0x3FFF)
        elif part.name == b"VP8L" and not size:
            [bits] = struct.unpack_from("<I", data, at + 1)
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif part.name == b"EXIF" and not orientation:
            orientation = exif_orientation(bytes(data[at : part.end]).removeprefix(EXIF_MARK))
    if not size:
        raise HeaderError("it has no picture data")
    return Header("WEBP", size, orientation or 1, 20)


def _webp_chunks(data: Bytes) -> Iterator[FilePart]:
    return _chunks(data, 12, "<4sI")


def _chunks(data: Bytes, at: int, layout: str, checksum: int = 0) -> Iterator[FilePart]:
    """Chunks that begin with name and length; RIFF's are padded to an even length."""
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        first, second = struct.unpack_from(layout, data, at)
        name, length = (second, first) if checksum else (first, second)
        end = at + 8 + length + (checksum or length % 2)
        yield FilePart(name, at, at + 8, min(end, len(data)))
        at = end
    raise HeaderError(f"it has more than {MAX_PARTS} parts")
