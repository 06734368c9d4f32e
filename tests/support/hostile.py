"""Hostile and odd inputs, made here: each gets a problem or a sound answer, and the service still answers after it."""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import numpy as np
from PIL import Image

from referent.core.api import GroundResponse, Problem
from tests.support.requests import in_json, jpeg

JSON, FORM = "application/json", "multipart/form-data; boundary=b"
GOLDEN = in_json(jpeg(100, 200), "the queen")
MAX_PIXELS = 2_000_000


class Input(NamedTuple):
    """One request; `answers` are the statuses that are right for it."""

    name: str
    body: bytes
    media_type: str = JSON
    answers: tuple[int, ...] = (400, 404, 413, 415, 422)


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
        "RIFF of no WebP": b"RIFF\xff\xff\xff\xffWAVE",
    }.items():  # fmt: skip
        yield image(name, data, 400 if data else 422, 415)


def odd_but_sound() -> Iterator[Input]:
    for mode in ("L", "LA", "1", "P", "RGBA", "I;16"):
        yield image(f"PNG of mode {mode}", saved(NOISE.convert("L").convert(mode), "PNG"), 200)
    yield image("CMYK", saved(NOISE.convert("CMYK"), "JPEG"), 200)
    yield image("one pixel", saved(Image.new("RGB", (1, 1)), "PNG"), 200)
    yield image("line", saved(Image.new("RGB", (1, 5000)), "PNG"), 200)
    yield image("wide line", saved(Image.new("RGB", (20_000, 1)), "PNG"), 200)
    for orientation in (0, 5, 8, 9, 255):
        yield image(f"orientation {orientation}", jpeg(60, 40, orientation), 200)


def broken_json() -> Iterator[Input]:
    good = json.dumps(GOLDEN).encode()
    for name, body in {
        "empty": b"", "space": b" ", "null": b"null", "number": b"1", "string": b'"a"', "array": b"[]", "object": b"{}",
        "cut": good[:-1], "cut early": good[:20], "two": good * 2, "trailing": good + b"x", "comment": b"//\n" + good,
        "deep arrays": b"[" * 100_000, "deep objects": b'{"image":' * 50_000,
        "deep and closed": b"[" * 9000 + b"]" * 9000,
        "many zeros": b"[" + b"0," * 100_000 + b"0]", "many keys": b"{" + b'"a":1,' * 100_000 + b'"b":1}',
        "NaN": b'{"model": NaN}', "infinity": b'{"model": -Infinity}', "1e999": b'{"model": 1e999}',
        "long number": b'{"model":' + b"1" * 50_000 + b"}", "BOM": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "invalid UTF-8": b'{"model": "\xc3\x28"}', "overlong UTF-8": b'{"model": "\xc0\xaf"}',
        "surrogate": b'{"model": "\\ud800"}',
        "single quotes": good.replace(b'"', b"'"), "zeros": bytes(1000),
        "prototype": b'{"__proto__": {}, "constructor": 1}',
    }.items():  # fmt: skip
        yield Input(f"JSON: {name}", body)
    fields: dict[str, object] = {
        "null image": {"image": None}, "string image": {"image": "a"}, "list image": {"image": []},
        "number": {"image": {"base64": 7}},
        "null base64": {"image": {"base64": None}}, "list base64": {"image": {"base64": ["a"]}},
        "url and base64": {"image": {"url": "a", "base64": "a"}},
        "file URL": {"image": {"url": "file:///etc/passwd"}},
        "metadata URL": {"image": {"url": "http://169.254.169.254/"}},
        "null expressions": {"expressions": None}, "string": {"expressions": "a"},
        "nested": {"expressions": [["a"]]}, "numbers": {"expressions": [1]},
        "null in list": {"expressions": [None]}, "objects": {"expressions": [{}]},
        "none": {"expressions": []}, "33": {"expressions": ["a"] * 33},
        "9000": {"expressions": ["a"] * 9000}, "number model": {"model": 1},
        "empty model": {"model": "other"}, "path": {"model": "../../etc/passwd"},
        "NUL": {"model": "tiny\0"}, "long model": {"model": "m" * 100_000}, "true": {"model": True},
        "extra": {"extra": 1}, "case": {"Image": 1},
        "9 images": {"images": [{}] * 9}, "no images": {"images": []}, "images are numbers": {"images": [1]},
    }  # fmt: skip
    for name, change in fields.items():
        yield Input(f"field: {name}", json.dumps({**GOLDEN, **change}).encode())
    for name, text in {
        "no padding": "YWI", "too much padding": "YQ====", "URL alphabet": "-_-_", "percent": "%59%57",
        "no alphabet": "!!!!", "NUL": "YQ\0=",
        "data URL without data": "data:image/png;base64,", "data URL of text": "data:text/html,<p>",
        "data URL of a URL": "data:http://127.0.0.1/",
        "fullwidth": "ＹＱ＝＝", "emoji": "🂡", "one character": "a",
    }.items():  # fmt: skip
        yield Input(f"base64: {name}", json.dumps(GOLDEN | {"image": {"base64": text}}).encode(), JSON, (400, 415, 422))


def expressions() -> Iterator[Input]:
    def asked(name: str, text: str, *answers: int) -> Input:
        return Input(f"expression: {name}", json.dumps(GOLDEN | {"expressions": [text]}).encode(), JSON, answers)

    for name, text in {
        "empty": "", "spaces": " \t\n", "ideographic space": "\u3000", "NUL": "a\0b",
        "escape": "\x1b[31mred", "bell": "\a", "C1": "\x85a\x9b",
        "1001 characters": "a" * 1001, "a megabyte": "word " * 200_000,
        "marks": "e" + "\u0316\u0301" * 100_000, "ligatures": "\ufdfa" * 1001,
    }.items():  # fmt: skip
        yield asked(name, text, 422)
    for name, text in {
        "right to left override": "\u202eneeuq eht", "zero width": "\u200b\u200d\ufeff",
        "emoji family": "👨‍👩‍👧‍👦", "flags": "🇬🇧🇩🇪", "Zalgo": "q\u0300\u0301\u0302\u0489" * 20,
        "tags": "\U000e0041\U000e0042", "private use": "\ue000\U0010fffd",
        "noncharacter": "\uffff\ufdd0", "decomposed": "cafe\u0301", "Hangul": "\u1112\u1161\u11ab",
        "special tokens": "<image></s>[LOC]<pad>", "braces": "{expression} {0} %s",
        "HTML": "<script>alert(1)</script>", "SQL": "'; DROP TABLE a; --",
        "template": "${jndi:ldap://a}", "path": "../../etc/passwd", "fullwidth": "ｔｈｅ　ｑｕｅｅｎ",
        "Turkish": "İıĞ", "line separators": "a\u2028b\u2029c",
    }.items():  # fmt: skip
        yield asked(name, text, 200, 422)


def forms() -> Iterator[Input]:
    file = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + FILES["jpeg"]
    words = b'Content-Disposition: form-data; name="expression"\r\n\r\nthe queen'

    def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
        return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end

    yield Input("form: sound", form(file, words), FORM, (200,))
    for name, body in {
        "empty": b"", "end alone": b"--b--\r\n", "no end": form(file, words, end=b""),
        "cut in the file": form(file)[:200], "image alone": form(file),
        "expression alone": form(words), "two images": form(file, file, words),
        "other boundary": form(file, words).replace(b"--b", b"--c"),
        "no disposition": form(b"X: y\r\n\r\nz", file, words),
        "no name": form(file.replace(b'; name="image"', b""), words),
        "header cut": b"--b\r\nContent-Disposition: form-d",
        "header of a megabyte": form(b"X: " + b"x" * 1_000_000 + b"\r\n\r\nz", file, words),
        "5000 headers": form(b"X: y\r\n" * 5000 + b"\r\nz", file, words),
        "1001 fields": form(file, *[words] * 1001), "33 expressions": form(file, *[words] * 33),
        "field of 2 MB": form(file, words + b"x" * 2_000_000),
        "image as text": form(file.replace(b'; filename="a.jpg"', b""), words),
        "file as expression": form(file.replace(b"image", b"expression", 1)),
        "unknown field": form(file, words, words.replace(b"expression", b"expresion")),
        "binary": bytes(range(256)) * 40, "newlines": b"\n" * 10_000,
        "boundaries": b"--b\r\n" * 10_000, "JSON": json.dumps(GOLDEN).encode(),
    }.items():  # fmt: skip
        yield Input(f"form: {name}", body, FORM)
    sound = form(file, words)
    for media_type in (
        "multipart/form-data", "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 5000, "multipart/mixed; boundary=b",
        "multipart/form-data; boundary=\"b", "application/x-www-form-urlencoded", "text/plain", "",
        "application/xml", "image/jpeg", "a/b/c;;;=",
        "application/json; charset=utf-16", "application/problem+json", "*/*", "application/json, multipart/form-data",
    ):  # fmt: skip
        yield Input(f"type: {media_type[:60]}", sound, media_type)
    yield Input("type: unknown charset", sound, FORM + "; charset=no-such", (200, 400))


CORPUS = [
    entry
    for make in (bombs, truncations, bit_flips, polyglots, odd_but_sound, broken_json, expressions, forms)
    for entry in make()
]


def fault_of(entry: Input, response: httpx.Response) -> str | None:
    """What is wrong with an answer; None if nothing."""
    if response.status_code not in entry.answers:
        return f"status {response.status_code}, not one of {entry.answers}: {response.text[:200]}"
    if response.status_code == 200:
        answer = GroundResponse.model_validate_json(response.content)
        boxes = np.array([found.box_xyxy for found in answer.results])
        sides = 2 * [answer.image.width, answer.image.height]
        return None if ((boxes >= 0) & (boxes <= sides)).all() else f"boxes {boxes} outside {sides}"
    if response.headers["content-type"] != "application/problem+json":
        return f"content type {response.headers['content-type']}"
    problem = Problem.model_validate_json(response.content)
    return (
        None if len(problem.detail) <= 400 and "Traceback" not in problem.detail else f"detail {problem.detail[:500]}"
    )
