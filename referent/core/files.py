"""Files written whole or not at all."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(file: Path) -> Iterator[Path]:
    """A temporary file beside `file`. If the block succeeds, it replaces `file`; otherwise it is removed.

    What a killed process left of it is overwritten by the next. A file may have one writer at a time.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def md5(file: Path) -> str:
    """MD5 of the file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
