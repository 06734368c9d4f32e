"""multipart/form-data from strangers: a complete form is answered, any other gets a problem."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.gateway import Start
from tests.support.requests import jpeg

pytestmark = pytest.mark.anyio
IMAGE = jpeg(100, 200)


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


FILE = part("image", IMAGE, '; filename="a.jpg"\r\nContent-Type: image/jpeg')
WORDS = part("expression", b"the queen") + part("expression", b"the king")
END = b"--b--\r\n"
HEAD = b'--b\r\nContent-Disposition: form-data; name="'


@pytest.fixture
async def client(start: Start) -> AsyncIterator[httpx.AsyncClient]:
    async with start() as client:
        yield client


async def send(
    client: httpx.AsyncClient, body: bytes, media_type: str = "multipart/form-data; boundary=b"
) -> httpx.Response:
    return await client.post("/v1/ground", content=body, headers={"Content-Type": media_type})


WHOLE = {
    "as browsers send it": FILE + WORDS + END,
    "preamble": b"This is a message\r\nof several parts.\r\n" + FILE + WORDS + END,
    "preamble of a line": b"\r\n" + FILE + WORDS + END,
    "epilogue": FILE + WORDS + END + b"and more\r\n--b\r\n",
    "no file name": part("image", IMAGE) + WORDS + END,
    "file names of any characters": part("image", IMAGE, '; filename="\xff;\\".jpg"') + WORDS + END,
    "image last": WORDS + FILE + END,
    "no line behind the end": (FILE + WORDS + END)[:-2],
    "spaces behind a boundary": (FILE + WORDS + END).replace(b"--b\r\n", b"--b \t\r\n"),
    "headers in small letters": (FILE + WORDS + END).replace(b"Content-Disposition", b"content-disposition"),
    "folded headers": (FILE + WORDS + END).replace(b"form-data; name", b"form-data;\r\n\tname"),
    "other headers first": (FILE + WORDS + END).replace(b"Content-D", b"X-A: b\r\nContent-D"),
    "a name within a file's name": part("image", IMAGE, '; filename="a; name=b"') + WORDS + END,
    "escapes in a name": (FILE + WORDS + END).replace(b'"image"', rb'"im\age"'),
    "names without quotes": (FILE + WORDS + END).replace(b'"image"', b"image"),
}


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
async def test_form_is_read_however_it_is_written(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await send(client, body)
    assert answer.status_code == 200, answer.text
    assert [found["expression"] for found in answer.json()["results"]] == ["the queen", "the king"]
    assert answer.json()["image"] == {"width": 100, "height": 200}


async def test_form_is_cut_off_anywhere(client: httpx.AsyncClient) -> None:
    body = FILE + WORDS + END
    for end in [1, 3, 20, 100, len(FILE) - 1, len(FILE), len(FILE) + 60, *range(len(body) - 90, len(body) - 2)]:
        answer = await send(client, body[:end])
        assert answer.status_code == 400, body[:end][-40:]
        assert answer.json()["type"] == "urn:referent:problem:malformed-request"


REFUSED = {
    "two images": (FILE + FILE + WORDS + END, 400, "more than one image"),
    "an image as file and as text": (FILE + part("image", b"a") + WORDS + END, 400, "more than one image"),
    "two models": (FILE + WORDS + part("model", b"a") * 2 + END, 400, "more than one model"),
    "a field that is not UTF-8": (FILE + part("expression", b"\xe9t\xe9") + END, 400, "not UTF-8"),
    "a part without a name": (FILE + WORDS.replace(b'; name="expression"', b"") + END, 400, "without a name"),
    "a part without a head": (FILE + b"--b\r\nthe queen\r\n" + END, 400, "without a name"),
    "lines of LF": ((FILE + WORDS + END).replace(b"\r\n", b"\n"), 400, "cut off"),
    "many parts": (FILE + WORDS * 600 + END, 400, "more than 1000 parts"),
    "a head that does not end": (HEAD + b";" * 1_000_000 + b"\r\n--b--", 400, "without a name"),
    "a head of escapes": (HEAD + b'\\"' * 500_000 + b"\r\n\r\na\r\n" + END, 400, "without a name"),
    "many heads of semicolons": ((HEAD + b";" * 15_000 + b"\r\n\r\na\r\n") * 900 + END, 400, "without a name"),
    "many parts with long heads": (part("expression", b"a", "; a=b" * 3_000) * 900 + FILE + END, 422, "expression"),
    "a head of many lines": (
        b"--b\r\n" + b"a:\r\n" * 300_000 + HEAD[5:] + b'a"\r\n\r\na\r\n' + END,
        400,
        "without a name",
    ),
    "no parts": (END, 422, "image"),
    "an unknown field": (FILE + WORDS + part("expresion", b"a") + END, 422, "expresion"),
}


@pytest.mark.parametrize(("body", "status", "detail"), REFUSED.values(), ids=REFUSED)
async def test_form_that_means_nothing_is_refused(
    client: httpx.AsyncClient, body: bytes, status: int, detail: str
) -> None:
    answer = await send(client, body)
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text


LONG = ['; boundary="' + ";" * 15_000, "; a=b" * 3_000, '; boundary="' + r"\"" * 7_000, ";" * 15_000]


@pytest.mark.parametrize(
    "parameters", [*LONG, "", "; boundary=", "; boundary=c", '; boundary="', "; boundary*=x'y", ";;;="]
)
async def test_boundary_that_is_not_there_is_a_problem(client: httpx.AsyncClient, parameters: str) -> None:
    assert (await send(client, FILE + WORDS + END, f"multipart/form-data{parameters}")).status_code == 400


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "utf_16", "hex", "no-such", "latin-1"])
async def test_charset_of_the_form_is_no_matter(client: httpx.AsyncClient, charset: str) -> None:
    """Forms are UTF-8: browsers send no charset, and Python's codecs can do worse than fail."""
    answer = await send(client, FILE + WORDS + END, f"multipart/form-data; charset={charset}; boundary=b")
    assert answer.status_code == 200
