"""Hostile and odd requests, made here: each gets a problem or a sound answer, and the service goes on."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np

from referent.core.api import GroundResponse, Problem
from tests.support.hostile_images import FILES, IMAGES, JSON, Input
from tests.support.requests import in_json, jpeg

FORM = "multipart/form-data; boundary=b"
GOLDEN = in_json(jpeg(100, 200), "the queen")
MAX_PIXELS = 2_000_000


def broken_json() -> Iterator[Input]:
    good = json.dumps(GOLDEN).encode()
    for name, body in {
        "empty": b"", "space": b" ", "null": b"null", "number": b"1", "string": b'"a"', "array": b"[]", "object": b"{}",
        "cut": good[:-1], "cut early": good[:20], "two": good * 2, "trailing": good + b"x", "comment": b"//\n" + good,
        "deep arrays": b"[" * 100_000, "deep objects": b'{"image":' * 50_000,
        "deep and closed": b"[" * 9000 + b"]" * 9000,
        "many zeros": b"[" + b"0," * 100_000 + b"0]", "many keys": b"{" + b'"a":1,' * 100_000 + b'"b":1}',
        "NaN": b'{"model": NaN}', "infinity": b'{"model": -Infinity}', "1e999": b'{"model": 1e999}',
        "long number": b'{"model":' + b"1" * 50_000 + b"}", "two BOMs": b"\xef\xbb\xbf" * 2 + good,
        "UTF-16": good.decode().encode("utf-16"),
        "invalid UTF-8": b'{"model": "\xc3\x28"}', "overlong UTF-8": b'{"model": "\xc0\xaf"}',
        "surrogate": b'{"model": "\\ud800"}',
        "single quotes": good.replace(b'"', b"'"), "zeros": bytes(1000),
        "prototype": b'{"__proto__": {}, "constructor": 1}',
    }.items():  # fmt: skip
        yield Input(f"JSON: {name}", body)
    fields: dict[str, dict[str, Any]] = {
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
        "zero width": "\u200b\u200d\ufeff", "byte order mark": "\ufeff", "soft hyphens": "\xad\xad",
        "fillers": "\u3164\uffa0",
        "tags": "\U000e0041\U000e0042", "marks of direction": "\u202e\u200f \u2066",
    }.items():  # fmt: skip
        yield asked(name, text, 422)
    for name, text in {
        "right to left override": "\u202eneeuq eht", "zero width within": "que\u200ben\ufeff",
        "emoji family": "👨‍👩‍👧‍👦", "flags": "🇬🇧🇩🇪", "Zalgo": "q\u0300\u0301\u0302\u0489" * 20,
        "private use": "\ue000\U0010fffd",
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
    for charset in (
        "no-such", "punycode", "undefined", "idna", "raw_unicode_escape", "unicode_escape", "utf_16", "utf_32", "utf_7",
        "hex", "base64", "rot13", "zip", "oem", "mbcs", "cp037", "\x00",
    ):  # fmt: skip
        yield Input(f"type: charset {charset!r}", sound, f"{FORM}; charset={charset}", (200, 400))
    for name, body in {
        "preamble": b"This is a message of several parts.\r\n" + sound, "preamble of a line": b"\r\n" + sound,
        "epilogue": sound + b"\r\nmore", "image without a file's name": sound.replace(b'; filename="a.jpg"', b""),
        "odd file name": sound.replace(b'"a.jpg"', b'"a\xff;b\\"c.jpg"'), "no CRLF at the end": sound[:-2],
        "spaces behind a boundary": sound.replace(b"--b\r\n", b"--b \t\r\n"),
        "names in other letters": sound.replace(b"Content-Disposition", b"content-disposition"),
        "name without quotes": sound.replace(b'name="image"', b"name=image"),
    }.items():  # fmt: skip
        yield Input(f"form: {name}", body, FORM, (200,))
    for name, body in {
        "cut in the last field": sound[:-12], "cut in the end": sound[:-5], "cut before the end": sound[:-9],
        "two expressions, one cut": form(file, words) [:-7] + b"\r\n--b\r\n" + words[:-3],
        "two models": form(file, words, *[words.replace(b"expression", b"model")] * 2),
        "image as file and as text": form(file, file.replace(b'; filename="a.jpg"', b""), words),
        "lines of LF": sound.replace(b"\r\n", b"\n"), "expression of Latin-1": form(file, words + b"\xe9"),
        "boundary within": form(file + b"\r\n--bx", words),
        "head without end": b"--b\r\nContent-Disposition" + b"x" * 50_000,
    }.items():  # fmt: skip
        yield Input(f"form: {name}", body, FORM)


def http() -> Iterator[Input]:
    """Heads as strangers send them."""
    good = json.dumps(GOLDEN).encode()
    for accept in (
        "", "*/*", "image/png;q=0", "image/png;q=0.5, application/json", "text/html", "application/json;q=x", ",,,;;;",
        "*/*;q=0.1, application/json;q=0.2", "image/*;q=0", "application/json; charset=utf-8; q=1", "a" * 5000, "q=1",
        "application/json;q=1e999", "text/*," * 500,
    ):  # fmt: skip
        yield Input(f"accept: {accept[:40]}", good, JSON, (200,), {"Accept": accept})
    for accept in ("*/*;q=0", "application/json;q=0, image/png;q=0", "application/json;q=0", "application/*;q=0"):
        yield Input(f"accept: {accept}", good, JSON, (406,), {"Accept": accept})
    for host in ("[", "[::1", "a b", "a:99999", "xn--\xe9", "", "a" * 3000, "a/b?c#d", "http://a"):
        name = f"host: {host[:20]!a}"
        yield Input(name, good, JSON, (200, 400), {"Host": host})
        yield Input(f"{name}, faulty", b"{", JSON, (400,), {"Host": host})
    for timeout in ("0", "-1", "nan", "inf", "1e999", "soon", "", "0x10", "9" * 400):
        yield Input(f"timeout: {timeout[:20]}", good, JSON, (200, 422), {"X-Request-Timeout": timeout})
    for name, value in {
        "X-Request-ID": "<script>", "X-Forwarded-For": "unknown, 127.0.0.1", "X-Forwarded-Proto": "gopher",
        "Content-Encoding": "identity", "traceparent": "00-zz-zz-zz", "Origin": "null", "Range": "bytes=0-1",
        "Transfer-Encoding": "identity", "Upgrade": "h2c", "Authorization": "Bearer \xff", "Cookie": "a" * 9000,
    }.items():  # fmt: skip
        yield Input(f"header: {name}", good, JSON, (200, 400, 501), {name: value})
    for path in (
        "/v1/ground/",
        "//v1/ground",
        "/v1/../v1/ground",
        "/v1/ground%00",
        "/%",
        "/v1/ground;a=b",
        "/" + "a" * 9000,
    ):
        yield Input(f"path: {path[:40]}", good, JSON, (200, 404, 405), {}, path)
    for name, text in {
        "spaces": "QQ " * 300_000, "tabs in four": "Q\tQ\t=\t=", "lines": "QUJD\r\n" * 1000,
        "padding within": "QQ==QQ==",
        "padding then space": "QQ== \n", "padding far within": "QUJD" * 100_000 + "QQ==" + "QUJD" * 100_000,
        "padding alone": "====", "no-break space": "QQ\xa0==", "zero width": "QQ\u200b==", "5 MB": "QUJD" * 1_300_000,
        "data URL of no kind": "data:;base64,QQ==", "data URL with a name": "data:image/png;name=a;base64,QQ==",
    }.items():  # fmt: skip
        body = json.dumps(GOLDEN | {"image": {"base64": text}}).encode()
        yield Input(f"base64: {name}", body, JSON, (400, 413, 415, 422))
    yield Input("JSON: BOM", b"\xef\xbb\xbf" + good, JSON, (200,))
    yield Input("JSON: escapes", good.replace(b"/", b"\\u002f"), JSON, (200,))
    for url in (
        "http://xn--a.example/", "http://xn--\u00fc.example/", "http://\u2024/", "http://a..b/", f"http://{'a' * 300}/",
        "http://[v1.a]/", "http://127.0.0.1:0/", "http://\ud83d\ude00.example/", "http://%00/", "http://a\u0000b/",
    ):  # fmt: skip
        yield Input(f"URL: {url[:40]!a}", json.dumps(GOLDEN | {"image": {"url": url}}).encode())


REQUESTS = (broken_json, expressions, forms, http)
CORPUS = [entry._replace(kind=make.__name__.replace("_", " ")) for make in IMAGES + REQUESTS for entry in make()]


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
