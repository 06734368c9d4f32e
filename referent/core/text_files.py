"""Reads text files of other programs: with a byte order mark, in another encoding, as tables of several kinds."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydantic import ValidationError

BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
DELIMITERS = ",;\t"  # which one a spreadsheet writes depends on its locale


class TextFileError(ValueError):
    """The file is not what it should be; the message names the line and the remedy."""


class TableRow(NamedTuple):
    """A row of a CSV file that is not empty."""

    line: int  # its last one, from 1
    cells: list[str]  # without surrounding white space
    text: str


@contextmanager
def open_utf8(file: Path) -> Iterator[BinaryIO]:
    """The file's bytes as UTF-8 without a byte order mark. Raises OSError and `TextFileError`."""
    with file.open("rb") as stream:
        encoding = _marked(stream.read(3))
        stream.seek(3 if encoding == "utf-8-sig" else 0)
        yield io.BytesIO("".join(read_lines(file)).encode()) if encoding == "utf-16" else stream


def numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, as UTF-8, with their numbers from 1. Raises OSError and `TextFileError`."""
    with open_utf8(file) as stream:
        lines = (line for text in stream for line in text.splitlines(keepends=True))  # also at \r alone
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def read_lines(file: Path, errors: str = "strict") -> list[str]:
    """The lines with their ends. UTF-8, or what the file's byte order mark says; `errors` as in `bytes.decode`.

    Raises OSError and `TextFileError`.
    """
    data = file.read_bytes()
    try:
        return list(io.StringIO(data.decode(_marked(data), errors), newline=""))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextFileError(f"{file}:{line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from error


def read_table(file: Path, errors: str = "strict") -> tuple[str, Iterator[TableRow]]:
    """The delimiter of a CSV file, and its rows, the first of which names the columns. Raises the errors of
    `read_lines`, and `TextFileError` while the rows are read."""
    lines = read_lines(file, errors)
    heading = next((line for line in lines if line.strip()), "")
    delimiter = max(DELIMITERS, key=heading.count)
    return delimiter, _rows(file, lines, delimiter)


def _rows(file: Path, lines: Sequence[str], delimiter: str) -> Iterator[TableRow]:
    table = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    start = 0
    try:
        for cells in table:
            start, text = table.line_num, "".join(lines[start : table.line_num])
            if any(cell.strip() for cell in cells):
                yield TableRow(start, [cell.strip() for cell in cells], text)
    except csv.Error as error:
        raise TextFileError(f"{file}:{start + 1}: {error}: is a quotation mark missing, or one too many?") from None


def has_end(line: str | bytes) -> bool:
    """Whether the line has an end. A last line without one may be cut off."""
    return line.endswith(("\n", "\r")) if isinstance(line, str) else line.endswith((b"\n", b"\r"))


def fault_of(error: ValidationError) -> str:
    """The first fault in JSON of a wrong form, in one line that begins with its place."""
    first = error.errors()[0]
    places = [".".join(map(str, first["loc"]))] if first["loc"] else []
    return ": ".join([*places, first["msg"].removeprefix("Value error, ")])


def _marked(start: bytes) -> str:
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
