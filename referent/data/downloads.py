"""Downloads images by URL into a folder. A file is named by the hash of its URL, and is whole or not there.

A second run fetches what the first one could not.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Never, Protocol
from urllib.parse import urlsplit

from tqdm import tqdm

from referent.core.files import atomic

DONE, PRESENT = "downloaded", "already there"


class Download(NamedTuple):
    """A URL, and the sha256 of its bytes in hex, if the source has it."""

    url: str
    sha256: str | None = None


class Fetch(Protocol):
    """Returns the bytes behind a URL; raises ValueError with the reason."""

    def __call__(self, url: str, *, max_bytes: int, deadline_s: float) -> Awaitable[bytes]: ...


@dataclass(frozen=True)
class DownloadLimits:
    """Limits of one file (`file_bytes`, `deadline_s`) and of all files of the folder (`total_bytes`)."""

    file_bytes: int = 20_000_000
    total_bytes: int = 50_000_000_000
    deadline_s: float = 30.0
    concurrency: int = 16


def cached_name(url: str) -> str:
    """The file's name in the image folder."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def safe_fetch() -> Fetch:
    """`referent.core.fetch` from any host with public addresses."""
    from referent.core.fetch import FetchPolicy, fetch

    policy = FetchPolicy()

    async def fetch_public(url: str, *, max_bytes: int, deadline_s: float) -> bytes:
        return await fetch(url, max_bytes=max_bytes, deadline_s=deadline_s, policy=policy)

    return fetch_public


def download(
    downloads: Iterable[Download], folder: Path, limits: DownloadLimits, fetch: Fetch | None = None
) -> Counter[str]:
    """The number of URLs with each outcome: downloaded, already there, or the reason of the failure. A URL that several
    rows name counts once. Raises `OSError` if a file can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(_Run(folder, limits, fetch or safe_fetch()).all(downloads))
    except ExceptionGroup as group:  # of the workers; raising within `except*` would make a group of this too
        if (fault := group.subgroup(OSError)) is None:
            raise
        raise OSError(f"downloads stopped: {fault.exceptions[0]}") from None


@dataclass
class _Run:
    folder: Path
    limits: DownloadLimits
    fetch: Fetch
    bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    tried: set[str] = field(default_factory=set)  # file names, since rows share images

    async def all(self, downloads: Iterable[Download]) -> Counter[str]:
        with tqdm(desc="download", unit="image") as progress:
            queue = iter(downloads)  # shared: each worker takes the next one when it is free
            async with asyncio.TaskGroup() as group:
                for _ in range(self.limits.concurrency):
                    group.create_task(self._worker(queue, progress))
        return self.outcomes

    async def _worker(self, queue: Iterator[Download], progress: "tqdm[Never]") -> None:
        for item in queue:
            name = cached_name(item.url)
            if name in self.tried:
                continue
            self.tried.add(name)
            outcome = await self._one(item, self.folder / name)
            self.outcomes[outcome] += 1
            progress.update()
            progress.set_postfix_str(f"{self.bytes / 1e6:.0f} MB", refresh=False)

    async def _one(self, item: Download, file: Path) -> str:
        if file.exists():
            self.bytes += file.stat().st_size
            return PRESENT
        if self.bytes >= self.limits.total_bytes:
            return self._full()
        try:
            data = await self.fetch(item.url, max_bytes=self.limits.file_bytes, deadline_s=self.limits.deadline_s)
        except ValueError as error:
            return _reason(item.url, error)
        if item.sha256 and hashlib.sha256(data).hexdigest() != item.sha256.lower():
            return "content is not what was annotated (sha256)"
        if self.bytes + len(data) > self.limits.total_bytes:
            return self._full()
        with atomic(file) as temporary:
            temporary.write_bytes(data)
        self.bytes += len(data)
        return DONE

    def _full(self) -> str:
        return f"limit of {self.limits.total_bytes} bytes in all reached"


def _reason(url: str, error: ValueError) -> str:
    """The error without the host's name, so that equal failures of different hosts are counted together."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    return str(error).replace(host, "the host") if host else str(error)
