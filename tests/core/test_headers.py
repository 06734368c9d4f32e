"""Headers of image files: size as browsers show it, cost of decoding, and refusal of other files."""

import struct
import zlib
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pytest
from PIL import Image

from referent.core.headers import HeaderError, exif_orientation, format_of, read_header, without_metadata
from referent.core.images import decode_image, image_header
from tests.support.hostile_images import chunk, png, saved, segments

WIDE = Image.new("RGB", (40, 20), "red")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></x:xmpmeta>'
TURNED = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)


def exif(*entries: bytes, order: str = "<") -> bytes:
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def in_jpeg(exif: bytes) -> bytes:
    return segments(saved(WIDE, "JPEG"), (0xE1, b"Exif\0\0" + exif))


def in_png(exif: bytes) -> bytes:
    return png(40, 20, (b"eXIf", exif), (b"IDAT", zlib.compress((b"\0" + b"\xff\0\0" * 40) * 20)))


def in_webp(exif: bytes) -> bytes:
    return saved(WIDE, "WEBP", exif=exif)


ORIENTATIONS = {
    "alone": (exif(TURNED), 6),
    "of the other byte order": (exif(struct.pack(">HHIHH", 0x112, 3, 1, 8, 0), order=">"), 8),
    "behind an entry that can't be read": (exif(struct.pack("<HHII", 0x10F, 2, 9, 90_000), TURNED), 6),
    "behind an entry of no type": (exif(struct.pack("<HHII", 0x111, 99, 2**31, 0), TURNED), 6),
    "the first of two": (exif(struct.pack("<HHIHH", 0x112, 3, 1, 3, 0), TURNED), 3),
    "of another type": (exif(struct.pack("<HHII", 0x112, 4, 1, 6)), 1),
    "out of range": (exif(struct.pack("<HHIHH", 0x112, 3, 1, 9, 0)), 1),
    "more than the file holds": (exif(TURNED)[:8] + b"\xff\xff" + TURNED, 6),
    "an offset beyond": (b"II*\0\xff\xff\xff\xff" + bytes(20), 1),
    "cut off": (exif(TURNED)[:-6], 1),
    "none": (b"II*\0", 1),
}


@pytest.mark.parametrize("write", [in_jpeg, in_png, in_webp])
@pytest.mark.parametrize(("entries", "orientation"), ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_orientation_is_that_of_browsers(write: Callable[[bytes], bytes], entries: bytes, orientation: int) -> None:
    assert exif_orientation(entries) == orientation
    data = write(entries)
    assert image_header(data).orientation == orientation
    shown = (20, 40) if orientation in (6, 8) else (40, 20)
    assert image_header(data).shown_size == decode_image(data).size == shown


@pytest.mark.parametrize(
    "data",
    [
        segments(saved(WIDE, "JPEG"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
        png(40, 20, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), (b"IDAT", zlib.compress(bytes(121 * 20)))),
        saved(WIDE, "WEBP", xmp=XMP),
    ],
    ids=["JPEG", "PNG", "WebP"],
)
def test_orientation_in_xmp_alone_turns_nothing(data: bytes) -> None:
    assert image_header(data).shown_size == decode_image(data).size == (40, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_as_its_own_boxes_say(orientation: int) -> None:
    given = Image.Exif()
    given[0x0112] = orientation
    data = saved(WIDE, "AVIF", exif=given)
    shown = (20, 40) if orientation >= 5 else (40, 20)
    assert image_header(data).shown_size == decode_image(data).size == shown


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_moves_the_corner_where_it_says(orientation: int) -> None:
    marked = WIDE.copy()
    marked.paste("blue", (0, 0, 8, 8))
    entry = exif(struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0))
    shown = decode_image(segments(saved(marked, "JPEG", quality=95), (0xE1, b"Exif\0\0" + entry)))
    right, bottom = shown.width - 3, shown.height - 3
    corner = {1: (3, 3), 2: (right, 3), 3: (right, bottom), 4: (3, bottom)}
    corner |= {5: (3, 3), 6: (right, 3), 7: (right, bottom), 8: (3, bottom)}
    red, _, blue = shown.getpixel(corner[orientation])
    assert blue > 200 > 50 > red


def test_what_is_no_picture_is_left_out() -> None:
    jpeg, webp = saved(WIDE, "JPEG"), saved(WIDE, "WEBP")
    video = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08" * 1000
    noted = segments(jpeg, (0xE2, b"\xff\xda" * 9000), (0xFE, b"\xff\xda" * 900), (0xE1, b"Exif\0\0"))
    padded = jpeg[:20] + bytes(9000) + b"\xff" * 9000 + jpeg[20:]
    for data in (noted + video, padded, jpeg):
        lean, scans = without_metadata(data, "JPEG")
        assert (len(lean) <= len(jpeg), scans) == (True, 1)
        assert decode_image(data) == decode_image(jpeg)
    data = png(4, 4, (b"tEXt", bytes(9000)), (b"IDAT", zlib.compress(bytes(52))), (b"zzZz", bytes(9000)))
    assert len(without_metadata(data, "PNG")[0]) < 200
    frames = saved(WIDE, "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 20), "blue")], xmp=XMP)
    assert decode_image(frames + chunk(b"junk", bytes(99))).getpixel((9, 9))[0] > 200
    assert len(without_metadata(webp + chunk(b"XMP ", bytes(9000)), "WEBP")[0]) <= len(webp)


@pytest.mark.parametrize("progressive", [False, True])
def test_scans_are_those_of_the_picture(progressive: bool) -> None:
    data = saved(WIDE, "JPEG", progressive=progressive)
    assert without_metadata(data, "JPEG")[1] == data.count(b"\xff\xda")
    restarts = saved(WIDE.resize((400, 200)), "JPEG", restart_marker_blocks=1)
    assert without_metadata(restarts, "JPEG")[1] == 1


@pytest.mark.parametrize(
    ("data", "bytes_per_pixel"),
    [
        (saved(WIDE, "JPEG"), 4),
        (saved(WIDE, "JPEG", progressive=True, subsampling="4:4:4"), 10),
        (saved(WIDE, "JPEG", progressive=True, subsampling="4:2:0"), 7),
        (saved(WIDE.convert("CMYK"), "JPEG"), 8),
        (saved(WIDE, "PNG"), 4),
        (saved(WIDE.convert("RGBA"), "PNG"), 8),
        (saved(WIDE, "PNG", transparency=(255, 0, 0)), 8),
        (saved(WIDE, "WEBP"), 20),
        (saved(WIDE, "AVIF"), 10),
    ],
    ids=["JPEG", "progressive", "smaller colours", "CMYK", "PNG", "RGBA", "one colour clear", "WebP", "AVIF"],
)
def test_memory_is_known_from_the_header(data: bytes, bytes_per_pixel: float) -> None:
    assert image_header(data).decoding_bytes == 800 * bytes_per_pixel


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0miafavif", "AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", None),
        (saved(WIDE, "GIF"), None),
        (b"", None),
    ],
)
def test_format_is_told_by_the_first_bytes(data: bytes, format: str | None) -> None:
    assert format_of(data) == format


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_header_that_is_cut_anywhere_is_refused_or_read(format: str) -> None:
    data = saved(WIDE, format)
    for end in range(12, len(data)):
        try:
            assert read_header(data[:end]).size == (40, 20)
        except HeaderError:
            continue


@pytest.mark.parametrize(
    "data",
    [
        saved(WIDE, "JPEG")[:2] + b"\xff\xfe\0\2" * 60_000,
        saved(WIDE, "JPEG")[:-2] + b"\xff\xc4\0\2" * 60_000 + b"\xff\xd9",
        png(4, 4, *[(b"teXt", b"")] * 60_000, (b"IDAT", zlib.compress(bytes(52)))),
        saved(WIDE, "WEBP") + chunk(b"junk", b"") * 60_000,
    ],
    ids=["JPEG", "behind the picture", "PNG", "WebP"],
)
def test_parts_are_limited(data: bytes) -> None:
    with pytest.raises(ValueError, match="more than 50000 parts"):
        decode_image(data)


def test_file_is_read_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(in_jpeg(exif(TURNED)))
    with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        assert read_header(data).shown_size == (20, 40)
