import asyncio
import hashlib
from collections import Counter
from pathlib import Path

import pytest

from referent.data.downloads import Download, DownloadLimits, cached_name, download


class Web:
    """Answers with the URL's own bytes, unless told otherwise; counts what was asked for."""

    def __init__(self, **faults: str) -> None:
        self.faults, self.asked = faults, Counter[str]()
        self.now = self.most = 0

    async def __call__(self, url: str, *, max_bytes: int, deadline_s: float) -> bytes:
        self.asked[url] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if fault := self.faults.get(url.rpartition("/")[2]):
            raise ValueError(fault)
        return url.encode()


def items(*names: str) -> list[Download]:
    return [Download(f"https://example.org/{name}") for name in names]


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_files_are_named_by_their_url_and_hold_its_bytes(tmp_path: Path) -> None:
    assert download(items("a", "b"), tmp_path / "new", DownloadLimits(), Web()) == {"downloaded": 2}
    url = "https://example.org/a"
    assert cached_name(url) == hashlib.sha256(url.encode()).hexdigest()
    assert (tmp_path / "new" / cached_name(url)).read_bytes() == url.encode()


def test_rows_that_share_an_image_fetch_it_once(tmp_path: Path) -> None:
    web = Web(b="gone")
    assert download(items("a", "a", "b", "b"), tmp_path, DownloadLimits(), web) == {"downloaded": 1, "gone": 1}
    assert set(web.asked.values()) == {1}


def test_a_second_run_fetches_only_what_failed(tmp_path: Path) -> None:
    broken, whole = Web(b="example.org answers with status 503"), Web()
    assert download(items("a", "b"), tmp_path, DownloadLimits(), broken) == {
        "downloaded": 1, "the host answers with status 503": 1
    }  # fmt: skip
    assert download(items("a", "b"), tmp_path, DownloadLimits(), whole) == {"already there": 1, "downloaded": 1}
    assert list(whole.asked) == ["https://example.org/b"]


def test_content_other_than_what_was_annotated_is_not_kept(tmp_path: Path) -> None:
    url = "https://example.org/a"
    good, other = Download(url, hashlib.sha256(url.encode()).hexdigest()), Download(url + "2", "0" * 64)
    outcomes = download([good, other], tmp_path, DownloadLimits(), Web())
    assert outcomes == {"downloaded": 1, "content is not what was annotated (sha256)": 1}
    assert names_in(tmp_path) == {cached_name(url)}


def test_the_folder_never_grows_over_its_limit(tmp_path: Path) -> None:
    limits = DownloadLimits(total_bytes=50, concurrency=3)
    outcomes = download(items(*"abcdef"), tmp_path, limits, Web())
    assert outcomes == {"downloaded": 2, "limit of 50 bytes in all reached": 4}
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 50


def test_no_more_downloads_at_a_time_than_allowed(tmp_path: Path) -> None:
    web = Web()
    download(items(*map(str, range(40))), tmp_path, DownloadLimits(concurrency=4), web)
    assert web.most == 4


def test_a_folder_that_takes_no_files_is_an_error_in_words(tmp_path: Path) -> None:
    class Full(Web):
        async def __call__(self, url: str, *, max_bytes: int, deadline_s: float) -> bytes:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"downloads stopped: .*No space left"):
        download(items("a"), tmp_path, DownloadLimits(), Full())


def test_addresses_of_this_machine_are_not_fetched(tmp_path: Path) -> None:
    (outcome,) = download([Download("http://127.0.0.1/a.jpg")], tmp_path, DownloadLimits(deadline_s=5))
    assert "not public" in outcome
    assert not names_in(tmp_path)
