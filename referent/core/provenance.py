"""Where a figure comes from: digests of files and folders, and the commit of the sources."""

import hashlib
import subprocess
from pathlib import Path

from referent.core.images import IMAGE_SUFFIXES


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the paths and digests of a folder's files without its images. Raises OSError."""
    if not path.is_dir():
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() not in IMAGE_SUFFIXES)
    lines = "".join(f"{digest_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return f"sha256:{hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()}"


def commit() -> str:
    """The sources' git commit; empty outside a checkout."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return asked.stdout.strip()
