"""Files written whole or not at all, small ones read safely, and locks."""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

SMALL = 16 * 2**20  # bytes


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


def printable(text: str) -> str:
    """The text, with \\xNN for bytes of a file's name that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_small(file: Path) -> bytes:
    """The content of a file that may be anybody's. Raises OSError, also for what is not a regular file, since reading a
    pipe or a device may never end, and for more than `SMALL` bytes."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        with open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(SMALL + 1)
        if len(content) > SMALL:
            raise OSError(errno.EFBIG, f"larger than {SMALL} bytes", str(file))
        return content
    finally:
        os.close(descriptor)


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, in order of their paths. Links to folders are followed, since data sets often have them
    instead of images; a folder that is reached twice is read once. Raises OSError."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    found, seen = [], set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        linked = {name for name in folders if Path(parent, name).is_symlink()}
        folders[:] = sorted(set(folders) - linked) + sorted(linked)
        found += [Path(parent, name) for name in names]
    return sorted(found)


def told(error: OSError, place: Path) -> str:
    """The error in one line, with the file that it is about; `place` where it names none."""
    remedy = ": free some space there" if error.errno == errno.ENOSPC else ""
    return f"{error.filename or place}: {error.strerror or error}{remedy}"


@contextmanager
def locked(path: Path, kind: int) -> Iterator[bool]:
    """Locks a file or folder against other processes, as `fcntl.flock` has it; the value is false where it could not be
    locked. Raises OSError if there is no such path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        held = True
    except OSError:  # by another, or a file system without locks
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)


def md5(file: Path) -> str:
    """MD5 of the file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
