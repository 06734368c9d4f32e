"""What a supervisor serves after its server died, with versions that can be served or not as a test says."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.versions import use
from referent.triton.repository import Placement, hold, read_release
from runtime import supervisor
from runtime.attempt import Attempt, Served, VersionError
from runtime.supervisor import Supervisor
from tests.support.releases import publish_tiny


class Server:
    """Has every model of its private repository ready."""

    def __init__(self, private: Path) -> None:
        self._private = private

    def get_model_repository_index(self, **options: Any) -> Any:
        return SimpleNamespace(
            models=[SimpleNamespace(name=f.name, state="READY") for f in self._private.iterdir()],
        )

    def load_model(self, name: str, **options: Any) -> None:
        pass

    unload_model = load_model


class Trying(Supervisor):
    """`bad` has the digests that can't be served now; `gate` holds up every attempt."""

    bad: set[str]
    gate: threading.Event

    def _work(self, attempt: Attempt) -> Served:
        assert self.gate.wait(30)
        if attempt.digest in self.bad:
            raise VersionError("no memory")
        release = read_release(self._repository, attempt.name, attempt.digest)
        return Served(release, 0.01, hold(self._repository, release.bundle))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for _ in range(2):
        publish_tiny(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def trying(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trying:
    """Serves version 2."""
    monkeypatch.setattr(supervisor, "FIRST_RETRY_S", 0.02)
    private = tmp_path / "private"
    private.mkdir()
    trying = Trying(Server(private), "", {}, repository, private, lambda: ["tiny"], Placement("cpu"))
    trying.bad, trying.gate = set(), threading.Event()
    trying.gate.set()
    trying.attach(os.getpid())
    until(trying, lambda: trying.settled and served(trying) == "2")
    return trying


def until(trying: Trying, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        trying.reconcile()
        time.sleep(0.01)


def look_again(trying: Trying) -> None:
    """For ten times the pause before a lost version would be tried again."""
    deadline = time.monotonic() + 10 * supervisor.FIRST_RETRY_S
    while time.monotonic() < deadline:
        trying.reconcile()
        time.sleep(0.01)


def served(trying: Trying) -> str:
    return trying.served["tiny"].release.bundle.version if "tiny" in trying.served else ""


def test_version_that_is_restored_stays_while_another_is_published(trying: Trying, repository: Path) -> None:
    trying.gate.clear()
    trying.attach(os.getpid())  # a new server
    trying.reconcile()
    _, newest = publish_tiny(repository)
    trying.bad.add(newest)
    trying.reconcile()
    seen = []
    trying.gate.set()
    until(trying, lambda: seen.append(served(trying)) or trying.settled)
    assert set(seen) == {"2"}


@pytest.mark.parametrize("failures", [1, 3])
def test_version_that_could_not_be_restored_comes_back(trying: Trying, failures: int) -> None:
    digest = trying.served["tiny"].release.digest
    trying.bad.add(digest)
    for _ in range(failures):
        trying.attach(os.getpid())
        until(trying, lambda: served(trying) == "1")  # meanwhile
    trying.bad.clear()
    until(trying, lambda: trying.settled and served(trying) == "2")


def test_version_that_is_named_meanwhile_is_not_replaced_by_the_lost_one(trying: Trying, repository: Path) -> None:
    trying.bad.add(trying.served["tiny"].release.digest)
    trying.attach(os.getpid())
    until(trying, lambda: served(trying) == "1")
    publish_tiny(repository)
    until(trying, lambda: trying.settled and served(trying) == "3")
    trying.bad.clear()
    use(repository, "tiny", "1")
    until(trying, lambda: trying.settled and served(trying) == "1")
    look_again(trying)
    assert served(trying) == "1"


def test_lost_version_that_ends_the_server_is_not_tried_again(trying: Trying) -> None:
    trying.bad.add(trying.served["tiny"].release.digest)
    trying.attach(os.getpid())
    until(trying, lambda: served(trying) == "1")
    trying.bad.clear()
    trying.gate.clear()
    until(trying, lambda: trying._attempt is not None)  # the lost version again
    trying.note_end(crashed=True)
    trying.gate.set()
    trying.attach(os.getpid())
    until(trying, lambda: trying.settled)
    look_again(trying)
    assert served(trying) == "1"


@pytest.mark.parametrize("failures", [1, 2])
def test_version_that_was_refused_is_tried_again_when_it_is_named_again(
    trying: Trying, repository: Path, failures: int
) -> None:
    _, newest = publish_tiny(repository)
    trying.bad.add(newest)
    for _ in range(failures):
        until(trying, lambda: trying.settled and "tiny" in trying.faults)
        use(repository, "tiny", newest)
    trying.bad.clear()
    use(repository, "tiny", newest)
    until(trying, lambda: trying.settled and served(trying) == "3")


def test_pipes_in_the_repository_hold_nothing_up(trying: Trying, repository: Path) -> None:
    for file in ("other/1/bundle.json", "other/config.pbtxt", "tiny/8/bundle.json"):
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(repository / file)
    trying._find = lambda: ["other", "tiny"]
    publish_tiny(repository)
    until(trying, lambda: trying.settled and served(trying) == "9")
    trying.attach(os.getpid())
    until(trying, lambda: trying.settled and served(trying) == "9")
