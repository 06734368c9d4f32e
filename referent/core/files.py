"""Files written whole or not at all."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(file: Path) -> Iterator[Path]:
    """A temporary file beside `file`, which takes its name if the block succeeds and is removed if it does not; what a
    killed process left of it is written over by the next. One writer a file."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def md5(file: Path) -> str:
    """Of its content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
