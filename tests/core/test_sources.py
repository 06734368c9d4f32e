"""What may be given as an image, and the errors for everything else."""

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from referent.core.images import ImageTooLargeError
from referent.core.sources import Base64Error, encoded, from_argument, from_base64, held, is_url, picture_of

RED = Image.new("RGB", (3, 2), "red")


def png(picture: Image.Image = RED) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class NamedFile:
    """A path of somebody else's class."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __fspath__(self) -> str:
        return str(self.file)


def written() -> io.BytesIO:
    """As it is left by whoever wrote the image into it: at its end."""
    buffer = io.BytesIO()
    RED.save(buffer, "PNG")
    return buffer


KINDS: dict[str, Any] = {
    "str": lambda file: str(file),
    "Path": lambda file: file,
    "PathLike": NamedFile,
    "bytes": lambda file: file.read_bytes(),
    "bytearray": lambda file: bytearray(file.read_bytes()),
    "memoryview": lambda file: memoryview(file.read_bytes()),
    "open file": lambda file: file.open("rb"),
    "unbuffered file": lambda file: file.open("rb", buffering=0),
    "BytesIO": lambda file: io.BytesIO(file.read_bytes()),
    "BytesIO at its end": lambda file: written(),
    "picture": lambda file: RED,
    "lazy picture": Image.open,
    "array": lambda file: np.asarray(RED),
    "data URL": lambda file: "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode(),
    "data URL in lines": lambda file: "DATA:image/png;base64," + base64.encodebytes(file.read_bytes()).decode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_may_be(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(png())
    source = KINDS[kind](file)
    with Image.open(io.BytesIO(encoded(source))) as sent:
        assert np.array_equal(sent, RED)
    assert np.array_equal(picture_of(source), RED)
    assert np.array_equal(picture_of(held(KINDS[kind](file))), RED)


def test_what_can_be_read_once_is_held_for_later() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream:
        stream.write(png())
    with os.fdopen(reader, "rb") as pipe:
        source = held(pipe)
    assert np.array_equal(picture_of(source), RED)
    assert encoded(source) == png()


def closed_picture(folder: Path) -> Image.Image:
    (folder / "closed.png").write_bytes(png())
    with Image.open(folder / "closed.png") as picture:
        pass
    return picture


def cut_picture(folder: Path) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    return Image.open(io.BytesIO(png(noise)[:2000]))


def closed_file(folder: Path) -> io.BytesIO:
    stream = io.BytesIO(png())
    stream.close()
    return stream


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "None": (lambda folder: None, ValueError, "NoneType None is not an image: an image is a path"),
    "a number": (lambda folder: 3, ValueError, "int 3 is not an image: an image is a path"),
    "a list of rows": (lambda folder: [[0] * 900], ValueError, r"list .{,140}characters\) is not an image: an"),
    "a picture of a closed file": (closed_picture, ValueError, "before its file is closed"),
    "a picture of a cut file": (cut_picture, ValueError, "truncated"),
    "a closed file": (closed_file, ValueError, "closed file.*an image is a path"),
    "a file of text": (lambda folder: io.StringIO("x"), ValueError, "file of text.*opened with 'rb'"),
    "a folder": (lambda folder: folder, IsADirectoryError, "is a folder: give an image in it"),
    "a str that is a folder": (str, IsADirectoryError, "is a folder"),
    "no file": (lambda folder: "none.jpg", FileNotFoundError, "no file 'none.jpg': an image is a path"),
    "a file in a file": (lambda folder: __file__ + "/a.jpg", FileNotFoundError, "no file"),
    "a name that no file has": (lambda folder: "a\0.jpg", FileNotFoundError, "no file"),
    "base64": (lambda folder: base64.b64encode(png()).decode() * 99, FileNotFoundError, "characters.*data URL"),
    "a data URL of no base64": (lambda folder: "data:image/png;base64,!", ValueError, "not valid base64"),
    "a grey array": (lambda folder: np.zeros((4, 4), np.uint8), ValueError, r"4x4 uint8; an image is \(height"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_words(tmp_path: Path, kind: str) -> None:
    make, error, message = REFUSED[kind]
    with pytest.raises(error, match=message) as caught:
        encoded(make(tmp_path))
    assert len(str(caught.value)) < 500


def test_a_file_that_no_service_takes_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open("huge.jpg", "wb") as stream:
        stream.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ImageTooLargeError, match=r"huge\.jpg' is too large for an image: 1099512 MB"):
        encoded(Path("huge.jpg"))


def test_a_url_is_somebody_else_s_to_fetch() -> None:
    assert is_url("HTTPS://images.example.org/a.jpg")
    assert not is_url("a.jpg")
    with pytest.raises(ValueError, match="given by URL"):
        picture_of("https://images.example.org/a.jpg")


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(png())))
    assert from_argument("-") == png()
    assert from_argument("-.png") == "-.png"


def test_base64_may_stand_in_lines_and_in_a_data_url() -> None:
    text = base64.encodebytes(png()).decode()
    assert from_base64(text) == from_base64(f"data:image/png;base64,{text}") == png()
    with pytest.raises(ValueError, match="not valid base64"):
        from_base64("~")


@pytest.mark.parametrize("piece", [4, 5, 6, 7, 1 << 18])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("QUJDREU=", b"ABCDE"),
        ("QUJ DRE U\n=", b"ABCDE"),
        ("QQ==", b"A"),
        ("", b""),
        ("QQ==QQ==", None),
        ("QQ=", None),
        ("QUJDQ", None),
        ("QUJD====", None),
        ("QQ==QUJD", None),
        ("QUJ\u00a0D", None),
        ("QUJ-", None),
        ("data:QUJD", None),
        ("data:text/plain,QUJD", None),
    ],
)
def test_base64_is_read_in_pieces_as_in_one(
    monkeypatch: pytest.MonkeyPatch, piece: int, text: str, found: bytes | None
) -> None:
    monkeypatch.setattr("referent.core.sources.PIECE", piece)
    if found is None:
        with pytest.raises(Base64Error, match="base64"):
            from_base64(text, 100)
    else:
        assert from_base64(text, 100) == found


def test_base64_ends_at_the_limit() -> None:
    with pytest.raises(ImageTooLargeError, match="the limit is 100 bytes"):
        from_base64("QUJD" * 34, 100)
