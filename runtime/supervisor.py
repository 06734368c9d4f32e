"""Keeps the models of a tritonserver loaded and up to date; the only code that loads or unloads them."""

import logging
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from tritonclient.grpc import InferenceServerClient, InferenceServerException

from referent.core.bundle import CONFIG_FILE, BundleError
from referent.core.files import read_small
from referent.triton.golden import probe, timeout_s_of
from referent.triton.repository import Placement, hold, link, named_digest, read_release, versions
from runtime.attempt import Attempt, HangError, Served, VersionError, tag_of

STUB = "triton_python_backend_stub"
STUB_DIED = "a Python stub died while it was loaded: is onnxruntime installed?"
CONTROL_TIMEOUT_S = 60  # for what takes no weights from a disk
LOOKUP_TIMEOUT_S = 5  # for what Triton knows
ABANDON_TIMEOUT_S = 2  # for unloading what is given up
FIRST_RETRY_S, LAST_RETRY_S = 1, 30  # between attempts to serve again what was served

logger = logging.getLogger(__name__)


class Named(NamedTuple):
    """What NAME/config.pbtxt holds, and which file it is: naming a version again makes another file."""

    content: bytes = b""
    file: int = 0
    changed_ns: int = 0

    @classmethod
    def read(cls, file: Path) -> "Named":
        """Empty where it can't be read."""
        try:
            status = file.stat()
            return cls(read_small(file), status.st_ino, status.st_mtime_ns)
        except OSError:
            return cls()


class Supervisor:
    """Makes a server process, and its successors, serve the ensembles of `repository` that `find` names: the digests in
    NAME/config.pbtxt, or the newest older version that can be served.

    `private` is the server's own repository; `headers` let the client control it. `load_timeout_s` and
    `golden_timeout_s` replace the limits that follow from a model's size.
    """

    def __init__(
        self,
        client: InferenceServerClient,
        grpc_url: str,
        headers: Mapping[str, str],
        repository: Path,
        private: Path,
        find: Callable[[], Sequence[str]],
        placement: Placement,
        load_timeout_s: float | None = None,
        golden_timeout_s: float | None = None,
    ) -> None:
        self._client, self._url, self._headers = client, grpc_url, dict(headers)
        self._repository, self._private, self._find, self._placement = repository, private, find, placement
        self._load_timeout_s, self._golden_timeout_s = load_timeout_s, golden_timeout_s
        self.served: dict[str, Served] = {}
        self.faults: dict[str, Exception] = {}  # why the newest version of a name is not served
        self._named: dict[str, Named] = {}  # NAME/config.pbtxt when it was last looked at
        self._candidates: dict[str, deque[str]] = {}  # digests to try in turn until one is good, by name
        self._published: dict[str, str] = {}  # digest to try beside the one that serves, by name
        self._attempt: Attempt | None = None
        self._ends: Counter[str] = Counter()  # of servers, by the digest that was being tried
        self._lost: dict[str, str] = {}  # digest that was served and could not be restored, by name
        self._retries: dict[str, tuple[float, float]] = {}  # by name, when, and how long after the one before

    def attach(self, server_pid: int) -> None:
        """Supervises this process from now on; nothing is loaded in it."""
        self._server = psutil.Process(server_pid)
        self._model_of_stub: dict[int, str] = {}
        self._suspects: set[int] = set()
        self._noted: set[int] = set()  # dead stubs that are known
        self._broken: set[str] = set()
        self._loaded: set[str] = set()  # names of those served that this process has
        self._attempt = None
        for name, served in self.served.items():
            digest = self._lost.get(name, served.release.digest)
            self._try_all(name, first=digest, later=name in self._retries)
        self._look_for_publications()

    def note_end(self, crashed: bool) -> bool:
        """Call when the server process has ended. If it crashed, or ended twice, while a version was being tried, that
        version is given up. Returns whether a new version was being tried: then the next process goes another way."""
        attempt, self._attempt = self._attempt, None
        if not attempt:
            return False
        served = self.served.get(attempt.name)
        if served and served.release.digest == attempt.digest:
            return False  # it was good before
        self._ends[attempt.digest] += 2 if crashed else 1
        if self._is_to_blame(attempt.digest):
            self._refuse(attempt, VersionError("tritonserver ended while it was tried"))
        elif served:
            self._published.setdefault(attempt.name, attempt.digest)
        else:
            attempt.others.appendleft(attempt.digest)
            self._candidates[attempt.name] = attempt.others
        return True

    def _is_to_blame(self, digest: str) -> bool:
        return self._ends[digest] > 1

    @property
    def settled(self) -> bool:
        """Whether nothing is being loaded."""
        return self._attempt is None and not self._candidates and not self._published

    def reconcile(self) -> None:
        """Checks the processes, Triton's models and the repository once, and acts on it. Returns soon, since versions
        are tried in other threads. Raises if Triton refuses; then call it again."""
        self._note_dead(self._attempt)
        if self._attempt:
            self._judge(self._attempt)
        if not self._attempt:
            self._try_next()
        ready = self._ready()
        broken, self._broken = self._broken, set()
        for name in sorted(self._loaded):
            served = self.served[name]
            if broken.intersection(served.parts) or not ready.issuperset({name, *served.parts}):
                self._restore(name, served, broken, ready)
        for name, (moment, _) in self._retries.items():
            if time.monotonic() > moment and name not in self._candidates and not self._attempt:
                if name in self._loaded:  # an older version
                    self._published.setdefault(name, self._lost[name])
                else:
                    self._try_all(name, first=self.served[name].release.digest)
        self._look_for_publications()

    def replace(self, name: str) -> bool:
        """Ends the processes of a stuck model's parts; the next checks start them again. False if there are none, since
        the parts run in the server's own process."""
        parts = self.served[name].parts if name in self.served else []
        ended = False
        for pid, model in self._model_of_stub.items():
            with suppress(psutil.Error):
                if model in parts and (stub := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                    stub.kill()
                    ended = True
        return ended

    # --- trying versions ---------------------------------------------------------------------------------------------

    def _try_next(self) -> None:
        """Tries models to restore or to serve for the first time, and then newly published versions."""
        self._candidates = {name: digests for name, digests in self._candidates.items() if digests}
        for name in self._published.keys() - self._candidates.keys():
            digest = self._published.pop(name)
            if digest != self.served[name].release.digest:
                self._candidates[name] = deque([digest])
        if self._candidates:
            name, digests = next(iter(self._candidates.items()))
            self._attempt = Attempt(name, digests.popleft(), digests, self._work)

    def _work(self, attempt: Attempt) -> Served:
        """In the attempt's thread: checks the files, loads the version beside the current one, and asks it."""
        release = read_release(self._repository, attempt.name, attempt.digest)
        lock = hold(self._repository, release.bundle)
        golden_timeout_s = self._golden_timeout_s or timeout_s_of(release.bundle)
        load_timeout_s = self._load_timeout_s or release.load_timeout_s
        attempt.deadline = time.monotonic() + load_timeout_s + golden_timeout_s
        link(release, self._repository, self._private, self._placement, tag_of(attempt.digest), attempt.candidate)
        self._load(attempt.candidate, load_timeout_s)  # and its parts
        start = time.monotonic()
        probe(self._repository, self._url, attempt.name, golden_timeout_s, served_as=attempt.candidate)
        return Served(release, time.monotonic() - start, lock)

    def _judge(self, attempt: Attempt) -> None:
        """Serves the version that was tried if it works; otherwise the previous one stays."""
        if attempt.outcome.done():
            try:
                new = attempt.outcome.result()
                if attempt.superseded:
                    raise VersionError("another version was named meanwhile")
                self._promote(attempt, new)
            except Exception as error:
                self._refuse(attempt, VersionError(f"{STUB_DIED}; {_told(error)}") if attempt.lost_a_stub else error)
        elif attempt.hangs:
            self._refuse(attempt, HangError(STUB_DIED))
        elif time.monotonic() > attempt.deadline:
            self._refuse(
                attempt,
                VersionError("it was not ready in time: set a longer --load-timeout, or REFERENT_GOLDEN_TIMEOUT_S"),
            )

    def _promote(self, attempt: Attempt, new: Served) -> None:
        name, before = attempt.name, self.served.get(attempt.name)
        link(new.release, self._repository, self._private, self._placement, tag_of(new.release.digest))
        try:
            self._load(name, CONTROL_TIMEOUT_S)
        except Exception:
            if before:  # what Triton goes on serving
                tag = tag_of(before.release.digest)
                link(before.release, self._repository, self._private, self._placement, tag)
            raise
        self.served[name] = new
        self._loaded.add(name)
        self.faults.pop(name, None)
        if self._lost.get(name, attempt.digest) == attempt.digest:
            self._lost.pop(name, None)
            self._retries.pop(name, None)
        self._attempt = None
        attempt.others.clear()
        logger.info("%s version %s is served, %s", name, new.release.bundle.version, new.release.digest)
        self._forget(attempt.candidate)
        if before:
            before.lock.close()
            for part in set(before.parts) - set(new.parts):
                self._forget(part)

    def _refuse(self, attempt: Attempt, error: Exception) -> None:
        name, served = attempt.name, self.served.get(attempt.name)
        stays = ", the one before stays" if served else ""
        logger.error("%s of %s cannot be served%s: %s", attempt.digest, name, stays, _told(error))
        self.faults.setdefault(name, error)
        self._attempt = None
        if served and served.release.digest == attempt.digest and name not in self._loaded:
            self._lost[name] = attempt.digest
        if isinstance(error, HangError) and self._lost.get(name) == attempt.digest:
            self._end_server()
        if self._is_to_blame(attempt.digest):  # it would end the next server too
            self._lost.pop(name, None)
            self._retries.pop(name, None)
        # a full disk, or memory, may have room again
        elif self._lost.get(name) == attempt.digest or (served and name not in self._loaded and not attempt.others):
            pause_s = min(2 * self._retries.get(name, (0, FIRST_RETRY_S / 2))[1], LAST_RETRY_S)
            self._retries[name] = time.monotonic() + pause_s, pause_s
        tag = tag_of(attempt.digest)  # of parts that may have died: Triton would hold them for ready
        for pid, model in self._model_of_stub.items():
            if model.endswith(tag):  # a load that hangs would hold up the unloading
                with suppress(psutil.Error):
                    psutil.Process(pid).kill()
        self._forget(attempt.candidate)
        for folder in self._private.glob(f"*{tag}"):
            self._forget(folder.name)

    def _forget(self, model: str) -> None:
        """Unloads a model that is not needed any more; it may be stuck."""
        with suppress(InferenceServerException):
            self._client.unload_model(model, headers=self._headers, client_timeout=ABANDON_TIMEOUT_S)
        shutil.rmtree(self._private / model, ignore_errors=True)

    # --- keeping models loaded ---------------------------------------------------------------------------------------

    def _note_dead(self, *loading: Attempt | None) -> None:
        dead = self._find_dead()
        self._broken |= dead
        for attempt in filter(None, loading):
            attempt.note(dead)

    def _find_dead(self) -> set[str]:
        """Models whose Python stub died. Triton reaps the stubs that it ends itself; one it lost stays a zombie."""
        zombies = set()
        with suppress(psutil.Error, IndexError):  # one ended while we looked: see next time
            for child in self._server.children():
                if child.status() == psutil.STATUS_ZOMBIE:
                    zombies.add(child.pid)
                elif child.name() == STUB:  # its first argument: <repository>/<model>/<version>/model.onnx
                    self._model_of_stub[child.pid] = Path(child.cmdline()[1]).parts[-3]
        dead = (zombies & self._suspects) - self._noted
        self._suspects = zombies
        self._noted = (self._noted & zombies) | dead
        everything = {part for served in self.served.values() for part in served.parts}
        if self._attempt:
            everything |= {folder.name for folder in self._private.glob(f"*{tag_of(self._attempt.digest)}")}
        return set().union(*({self._model_of_stub[pid]} if pid in self._model_of_stub else everything for pid in dead))

    def _ready(self) -> set[str]:
        index = self._client.get_model_repository_index(headers=self._headers, client_timeout=LOOKUP_TIMEOUT_S)
        return {model.name for model in index.models if model.state == "READY"}

    def _restore(self, name: str, served: Served, broken: set[str], ready: set[str]) -> None:
        """Loads again what died or was unloaded; if that fails, any version that can be served."""
        lost = sorted(broken.intersection(served.parts))
        why = f"the Python stub of {', '.join(lost)} died" if lost else "it was unloaded"
        logger.warning("%s: %s; loading it again", name, why)
        timeout_s = self._load_timeout_s or served.release.load_timeout_s

        def load(_: Attempt) -> Served:
            for part in lost:  # Triton holds it for ready: loading alone would do nothing
                self._client.unload_model(part, headers=self._headers, client_timeout=CONTROL_TIMEOUT_S)
            for part in served.parts:
                if part in lost or part not in ready:
                    self._load(part, timeout_s)
            self._load(name, CONTROL_TIMEOUT_S)
            return served

        loading = Attempt(name, served.release.digest, deque(), load)
        while not wait([loading.outcome], timeout=0.1).done and not loading.hangs:
            self._note_dead(self._attempt, loading)
        error = HangError("a Python stub died meanwhile") if loading.hangs else loading.outcome.exception()
        if error:
            logger.error("%s could not be loaded again: %s", name, _told(error))
            self._loaded.discard(name)
            if isinstance(error, HangError):
                self._end_server()
            else:
                self._try_all(name, first=served.release.digest)

    def _end_server(self) -> None:
        logger.error("tritonserver hangs while it loads; ending it, since only a new one can load that again")
        with suppress(psutil.Error):
            self._server.kill()

    # --- the repository ----------------------------------------------------------------------------------------------

    def _look_for_publications(self) -> None:
        for name in self._find():
            named = Named.read(self._repository / name / CONFIG_FILE)
            if named == self._named.get(name):
                continue
            first = name not in self._named
            self._named[name] = named  # what can't be served is tried once, not at every look
            try:
                digest = named_digest(self._repository, name)
            except BundleError as error:
                logger.error("%s: %s", name, error)
                digest = ""
            if not first:  # it is asked for again
                self._ends.pop(digest, None)
            served = self.served.get(name)
            if digest and served and digest != self._lost.get(name):
                self._lost.pop(name, None)
                self._retries.pop(name, None)
            if self._attempt and self._attempt.name == name and digest:
                restoring = served is not None and served.release.digest == self._attempt.digest
                self._attempt.superseded = self._attempt.digest != digest and not restoring
            if not served:
                if first or digest:
                    self._try_all(name, first=digest)
            elif digest:
                logger.info("%s is to be served as %s", name, digest)
                self._published[name] = digest

    def _try_all(self, name: str, first: str, later: bool = False) -> None:
        """Queues all versions to be tried until one works: this one, then those published before it, newest first.
        `later`: all but the first, whose turn comes when its pause is over."""
        known = list(versions(self._repository, name).values())
        older = known[known.index(first) + 1 :] if first in known else known
        first_of_all = [first] if first and not later else []
        if digests := [each for each in first_of_all + older if not self._is_to_blame(each)]:
            self._candidates[name] = deque(digests)
        elif not later:
            self.faults.setdefault(name, BundleError(f"no version of {name!r} can be read in {self._repository}"))

    def _load(self, model: str, timeout_s: float) -> None:
        try:
            self._client.load_model(model, headers=self._headers, client_timeout=timeout_s)
        except InferenceServerException as error:
            if "DEADLINE_EXCEEDED" in str(error.status()):
                raise HangError(f"tritonserver did not load {model} within {timeout_s:g} s") from error
            raise


def _told(error: BaseException) -> str:
    return str(error.message() if isinstance(error, InferenceServerException) else error)
