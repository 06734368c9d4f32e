"""Text files as people's programs write them."""

import codecs
import io
from pathlib import Path

BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class EncodingError(ValueError):
    """The file is not in the encoding that it has to be in; the message names the line and the remedy."""


def read_lines(file: Path, errors: str = "strict") -> list[str]:
    """The lines with their ends. UTF-8, or what the file's byte order mark says; `errors` as of `bytes.decode`.

    Raises OSError and `EncodingError`.
    """
    data = file.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return list(io.StringIO(data.decode(encoding, errors), newline=""))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EncodingError(f"{file}:{line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from error
