"""Hostile and odd images, made here: headers that lie, metadata beside the pixels, what is cut, damaged or no image."""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.support.requests import in_json, jpeg

JSON = "application/json"


class Input(NamedTuple):
    """One request; `answers` are the statuses that are right for it."""

    name: str
    body: bytes
    media_type: str = JSON
    answers: tuple[int, ...] = (400, 404, 413, 415, 422)
    headers: dict[str, str] = {}  # noqa: RUF012  more than the content type
    path: str = "/v1/ground"
    kind: str = ""

    @property
    def all_headers(self) -> dict[str, str]:
        return {"Content-Type": self.media_type, **self.headers}


def image(name: str, data: bytes, *answers: int) -> Input:
    """An image among sound fields."""
    return Input(f"image: {name}", json.dumps(in_json(data, "the queen")).encode(), JSON, answers or (413, 415, 422))


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
FILES = {
    "jpeg": saved(NOISE, "JPEG"),
    "progressive": saved(NOISE, "JPEG", progressive=True),
    "png": saved(NOISE, "PNG"),
    "webp": saved(NOISE, "WEBP"),
    "avif": saved(NOISE, "AVIF"),
}


def png(width: int, height: int, *chunks: tuple[bytes, bytes], mode: bytes = b"\x08\x02") -> bytes:
    """A PNG of these chunks after its header, however wrong they are."""
    header = struct.pack(">II", width, height) + mode + bytes(3)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def with_scans(data: bytes, copies: int) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * copies + data[-2:]


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose header announces another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def chunk(name: bytes, data: bytes) -> bytes:
    """Of RIFF."""
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def segments(data: bytes, *more: tuple[int, bytes]) -> bytes:
    """A JPEG with (marker, content) segments behind its start."""
    return data[:2] + b"".join(struct.pack(">BBH", 255, m, len(d) + 2) + d for m, d in more) + data[2:]


def bombs() -> Iterator[Input]:
    zeros = zlib.compress(bytes(30_000_000), 9)
    yield image("PNG of 50,000 x 50,000", png(50_000, 50_000, (b"IDAT", zeros)), 413)
    yield image("PNG of 2^31 - 1 squared", png(2**31 - 1, 2**31 - 1, (b"IDAT", zeros)), 413, 415)
    yield image("PNG of more data than pixels", png(4, 4, (b"IDAT", zeros)), 200, 422)
    yield image(
        "PNG with a text bomb",
        png(4, 4, (b"zTXt", b"k\0\0" + zeros), (b"IDAT", zlib.compress(bytes(52)))),
        200,
        415,
        422,
    )
    yield image(
        "PNG with a profile bomb",
        png(4, 4, (b"iCCP", b"k\0\0" + zeros), (b"IDAT", zlib.compress(bytes(52)))),
        200,
        415,
        422,
    )
    yield image("PNG of no pixels", png(0, 0, (b"IDAT", b"")))
    yield image("PNG 1 x 2,000,001", png(1, 2_000_001, (b"IDAT", zlib.compress(bytes(100)))), 413)
    yield image("JPEG of 65,000 x 65,000", with_size(FILES["jpeg"], 65_000, 65_000), 413)
    yield image("JPEG of height 0", with_size(FILES["jpeg"], 64, 0))
    yield image("JPEG larger than its data", with_size(FILES["jpeg"], 1400, 1400), 200, 422)  # the rest is grey
    yield image("JPEG of 31 scans", with_scans(FILES["progressive"], 31), 422)
    yield image("JPEG of 20,000 scans", with_scans(FILES["progressive"], 20_000), 413, 422)
    yield image("WebP of 16,383 x 16,383", saved(Image.new("RGB", (16383, 200)), "WEBP"), 413)
    yield image(
        "animation of 500 frames",
        saved(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(a) for a in range(30)]),
        200,
    )


def truncations() -> Iterator[Input]:
    for name, data in FILES.items():
        for share in (0, 1, 2, 5, 10, 20, 40, 60, 80, 95):
            yield image(f"{name} cut at {share}%", data[: len(data) * share // 100])


def bit_flips() -> Iterator[Input]:
    random = np.random.default_rng(1)
    for name, data in FILES.items():
        for index in range(18):
            damaged = bytearray(data)
            for position in random.integers(0, len(data), 1 + index):
                damaged[position] ^= 1 << int(random.integers(8))
            yield image(f"{name} with flips {index}", bytes(damaged), 200, 413, 415, 422)


def polyglots() -> Iterator[Input]:
    script = b"<html><script>alert(1)</script></html>"
    for name, data in FILES.items():
        yield image(f"{name} then HTML", data + script, 200, 415, 422)
        yield image(f"{name} then ZIP", data + b"PK\x03\x04" + bytes(100), 200, 415, 422)
        yield image(f"HTML then {name}", script + data, 415)
        yield image(f"PDF then {name}", b"%PDF-1.7\n" + data, 415)
    for name, format in (
        ("GIF", "GIF"),
        ("BMP", "BMP"),
        ("TIFF", "TIFF"),
        ("ICO", "ICO"),
        ("PPM", "PPM"),
        ("TGA", "TGA"),
    ):
        yield image(name, saved(NOISE, format), 415)
    for name, data in {
        "nothing": b"", "a zero": b"\0", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "zeros": bytes(10_000),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "text": b"picture", "GIF mark": b"GIF89a",
        "JPEG marks": b"\xff\xd8" * 1000, "PNG mark": b"\x89PNG\r\n\x1a\n",
        "RIFF of no WebP": b"RIFF\xff\xff\xff\xffWAVE", "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "HEIC of no brand": b"\0\0\0\x14ftypmif1\0\0\0\0heix", "MP4": b"\0\0\0\x18ftypmp42" + bytes(50),
        "AVIF mark": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "JPEG XL": b"\xff\x0a" + bytes(50),
    }.items():  # fmt: skip
        yield image(name, data, 415, 422)


def odd_but_sound() -> Iterator[Input]:
    for mode in ("L", "LA", "1", "P", "RGBA", "I;16"):
        yield image(f"PNG of mode {mode}", saved(NOISE.convert("L").convert(mode), "PNG"), 200)
    yield image("CMYK", saved(NOISE.convert("CMYK"), "JPEG"), 200)
    yield image("one pixel", saved(Image.new("RGB", (1, 1)), "PNG"), 200)
    yield image("line", saved(Image.new("RGB", (1, 5000)), "PNG"), 200)
    yield image("wide line", saved(Image.new("RGB", (20_000, 1)), "PNG"), 200)
    for orientation in (0, 5, 8, 9, 255):
        yield image(f"orientation {orientation}", jpeg(60, 40, orientation), 200)


def metadata() -> Iterator[Input]:
    """Metadata costs nothing, however large it is, and is no reason to refuse a picture."""
    noise = np.random.default_rng(2).bytes(3_000_000)
    text, big = zlib.compress(bytes(20_000_000), 9), noise[:65_000]
    jpeg, pixel = FILES["jpeg"], zlib.compress(bytes(52))
    sound = {
        "JPEG, video behind it": jpeg + b"\0\0\0\x18ftypmp42" + noise,
        "JPEG, binary in APP2": segments(jpeg, *[(0xE2, big)] * 40),
        "JPEG, marks in a comment": segments(jpeg, (0xFE, b"\xff\xda" * 1000)),
        "JPEG, 20,000 comments": segments(jpeg, *[(0xFE, b"")] * 20_000),
        "JPEG, fill bytes": jpeg[:2] + b"\xff" * 2_000_000 + jpeg[2:],
        "JPEG, junk before a mark": jpeg[:20] + b"\0" * 2_000_000 + jpeg[20:],
        "JPEG, EXIF of 65,000 bytes": segments(jpeg, (0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + big[:64_000])),
        "JPEG, Photoshop of many blocks": segments(
            jpeg, *[(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000)] * 9
        ),
        "JPEG, maker of several pictures": segments(jpeg, (0xE2, b"MPF\0II*\0\x08\0\0\0" + big[:500])),
        "PNG, a text bomb": png(4, 4, (b"zTXt", b"k\0\0" + text), (b"IDAT", pixel)),
        "PNG, an international text bomb": png(4, 4, (b"iTXt", b"k\0\1\0\0\0" + text), (b"IDAT", pixel)),
        "PNG, a profile bomb": png(4, 4, (b"iCCP", b"k\0\0" + text), (b"IDAT", pixel)),
        "PNG, 2 MB of text": png(4, 4, (b"tEXt", b"k\0" + noise[:2_000_000]), (b"IDAT", pixel)),
        "PNG, 20,000 texts": png(4, 4, *[(b"tEXt", b"k\0v")] * 20_000, (b"IDAT", pixel)),
        "PNG, unknown chunks": png(4, 4, (b"abCd", noise[:900_000]), (b"IDAT", pixel), (b"zzZz", b"")),
        "PNG, animated": png(4, 4, (b"acTL", b"\0\0\xff\xff\0\0\0\0"), (b"IDAT", pixel), (b"fdAT", noise[:9000])),
        "WebP, profile and XMP": saved(NOISE, "WEBP", icc_profile=noise[:900_000], xmp=noise[:900_000]),
        "WebP, a chunk behind": FILES["webp"] + chunk(b"junk", noise[:900_000]),
    }  # fmt: skip
    for name, data in sound.items():
        yield image(name, data, 200)
    for name, data in {
        "JPEG of comments alone": jpeg[:2] + b"\xff\xfe\0\2" * 700_000,
        "JPEG of fill bytes alone": b"\xff\xd8" + b"\xff" * 3_000_000,
        "JPEG of tables": jpeg[:2] + b"\xff\xc4\0\2" * 200_000 + jpeg[2:],
        "JPEG of restart marks": jpeg[:-2] + b"\xff\xd0" * 900_000,
        "JPEG, tables behind its scan": jpeg[:-2] + b"\xff\xc4\0\2" * 200_000,
        "PNG of empty chunks": png(4, 4, *[(b"teXt", b"")] * 200_000),
        "PNG of tiny data": png(4, 4, *[(b"IDAT", b"")] * 200_000),
        "WebP of empty chunks": FILES["webp"][:12] + chunk(b"junk", b"") * 300_000,
        "WebP of 100,000 frames": FILES["webp"][:12] + chunk(b"ANMF", bytes(16)) * 100_000,
    }.items():  # fmt: skip
        yield image(name, data, 200, 415, 422)


def sizes() -> Iterator[Input]:
    """What a header announces is checked before memory is allocated for it."""
    for width, height in ((65_536, 1), (1, 65_536), (1_999_999, 1), (65_535, 31), (2**31 - 1, 1), (2**20, 2**20)):
        yield image(f"PNG of {width} x {height}", png(width, height, (b"IDAT", zlib.compress(bytes(9)))), 413, 422)
    for width, height in ((65_535, 65_535), (65_535, 1), (1, 65_535), (40_000, 3)):
        yield image(f"JPEG of {width} x {height}", with_size(FILES["jpeg"], width, height), 200, 413, 422)
    for width, height in ((16_384, 16_384), (2**24, 1), (1, 2**24), (2**24, 2**24), (3000, 600), (100, 19_999)):
        canvas = b"\x12\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"WEBP" + chunk(b"VP8X", canvas) + chunk(b"ANIM", bytes(6)) + FILES["webp"][12:]
        yield image(f"WebP of a canvas of {width} x {height}", b"RIFF" + struct.pack("<I", len(body)) + body, 413, 422)
    for depth, colour in ((16, 0), (16, 4), (16, 6), (8, 3), (1, 0), (8, 4), (7, 2), (8, 9)):
        mode = bytes([depth, colour])
        yield image(f"PNG of depth {depth}, colour {colour}", png(64, 48, (b"IDAT", b""), mode=mode), 415, 422)
    for interlaced in (b"\1", b"\2"):
        header = b"\x08\x02\0\0" + interlaced
        data = png(1000, 1000, (b"IDAT", zlib.compress(bytes(100)))).replace(b"\x08\x02\0\0\0", header, 1)
        yield image(f"PNG of interlace {interlaced!r}", data, 415, 422)


def orientations() -> Iterator[Input]:
    def exif(*entries: bytes, order: bytes = b"II*\0\x08\0\0\0") -> bytes:
        return b"Exif\0\0" + order + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)

    turned, bad = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), struct.pack("<HHII", 0x10F, 2, 9, 90_000)
    for name, data in {
        "a bad neighbour": exif(bad, turned), "two": exif(turned, turned[:8] + b"\3\0\0\0"), "none": exif(),
        "a long": exif(struct.pack("<HHII", 0x112, 4, 1, 6)), "many": exif(struct.pack("<HHIHH", 0x112, 3, 9, 6, 0)),
        "another order": exif(turned, order=b"MM\0*\0\0\0\x08"),
        "an offset beyond": exif(turned, order=b"II*\0\xff\xff\xff\xff"),
        "half an entry": exif(turned)[:-9], "no TIFF": b"Exif\0\0hello", "nothing": b"Exif\0\0",
        "of 65,535 entries": exif()[:-4] + bytes(9),
    }.items():  # fmt: skip
        yield image(f"orientation of {name} in a JPEG", segments(FILES["jpeg"], (0xE1, data)), 200)
        chunks = (b"eXIf", data.removeprefix(b"Exif\0\0")), (b"IDAT", zlib.compress(bytes(52)))
        yield image(f"orientation of {name} in a PNG", png(4, 4, *chunks), 200)


def heavy() -> Iterator[Input]:
    """As large as a service with the limits of its own takes them, or larger: slow to make and to answer."""
    side = 7000
    for mode, colour in ((b"\x08\x02", 3), (b"\x08\x06", 4), (b"\x08\x04", 2), (b"\x10\x00", 2), (b"\x08\x00", 1)):
        packer = zlib.compressobj(9)
        rows = b"".join(packer.compress(bytes(1 + side * colour)) for _ in range(side)) + packer.flush()
        yield image(f"PNG of 49 MP, mode {mode.hex()}", png(side, side, (b"IDAT", rows), mode=mode), 200, 504)
    packer = zlib.compressobj(9)
    line = (
        b"".join(packer.compress(bytes(1_000_000)) for _ in range(49))
        + packer.compress(bytes(900_001))
        + packer.flush()
    )
    yield image("PNG of 49,900,000 x 1", png(49_900_000, 1, (b"IDAT", line), mode=b"\x08\x00"), 413)
    plain = NOISE.resize((7000, 7000))
    yield image("JPEG of 49 MP", saved(plain, "JPEG", quality=30), 200, 504)
    yield image("JPEG of 49 MP, turned", jpeg(7000, 7000, 6), 200, 504)
    progressive = saved(plain.resize((6001, 6001)), "JPEG", quality=20, progressive=True)
    yield image("progressive JPEG of 36 MP", progressive, 200, 413, 504)
    yield image("progressive JPEG of 29 scans", with_scans(progressive, 19), 200, 413, 422, 504)
    yield image("WebP of 20 MP", saved(plain.resize((4500, 4500)), "WEBP", quality=20, method=0), 200, 504)
    yield image("AVIF of 9 MP", saved(plain.resize((3000, 3000)), "AVIF", speed=10, quality=30), 200, 504)
    spaces = b'{"image":{"base64":"' + b"QQ " * 9_000_000 + b'"},"expressions":["a"]}'
    yield Input("base64 of 27 MB with spaces", spaces, JSON, (400, 413, 415))
    escapes = b'{"image":{"base64":"' + b"QUJD\\n" * 4_000_000 + b'"},"expressions":["a"]}'
    yield Input("base64 of 24 MB with escapes", escapes, JSON, (400, 413, 415))
    yield Input("body over the limit", b'{"image":{"base64":"' + bytes(40_000_000), JSON, (413,))
    random = np.random.default_rng(3).bytes(15_000_000)
    yield image("JPEG with 15 MB behind it", FILES["jpeg"] + random, 200, 504)
    yield image("15 MB of no image", b"\xff\xd8\xff\xe0" + random, 415, 422)
    pieces = in_json(saved(plain.resize((2500, 2500)), "JPEG"), "the queen")
    eight = {"images": [pieces] * 8}
    yield Input("eight images of 6 MP", json.dumps(eight).encode(), JSON, (200, 504))


IMAGES = (bombs, sizes, metadata, orientations, truncations, bit_flips, polyglots, odd_but_sound)
