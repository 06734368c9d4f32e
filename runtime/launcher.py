"""Runs the real tritonserver over a model repository and keeps it running.

with TritonServer(Path("model_repository")) as server:
    print(server.grpc_url)
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Self

import psutil
from tritonclient.grpc import InferenceServerClient, InferenceServerException

from runtime.distribution import find_distribution
from runtime.repository import find_ensembles
from runtime.supervisor import Keeper

POLL_S = 0.5
RETRY_S = 2
EXIT_TIMEOUT_S = 3  # for requests in flight when the server stops
PREFIX = "referent-triton-"  # of our files in the two folders below; the launcher's process id follows
SHARED_MEMORY, TEMPORARY = Path("/dev/shm"), Path(tempfile.gettempdir())

logger = logging.getLogger(__name__)


class TritonServerError(RuntimeError):
    """tritonserver did not start; the message ends with the tail of its log."""


class TritonServer:
    """A tritonserver on a loopback address (gRPC and metrics, no HTTP) and a thread that tends it.

    The thread starts the server again when it dies, reloads a model whose Python stub died, and brings in what is
    published: once the content of an ensemble's config.pbtxt changes, its parts and then the ensemble are loaded.
    A version that cannot be served is logged and the one before stays, also in a server that is started again; a first
    start falls back to older versions in the same way. Nothing else may load or unload models.

    model_repository: a folder a model, each with a full config.pbtxt.
    models: ensembles to serve; by default all of the repository, those too that are published later.
    address: to listen on.
    grpc_port, metrics_port: 0 picks a free one.
    log_path: file to append the server's log to; by default a temporary one.
    verify(model_repository, name, version): raises if files of an ensemble are not as published; called before every
    load.
    probe(grpc_url, name, served_as): raises if the golden inference of an ensemble fails, which is asked under the name
    `served_as`; called before a start or a new version counts as good.
    arguments: further command-line arguments of tritonserver.
    """

    def __init__(
        self,
        model_repository: Path,
        models: Sequence[str] | None = None,
        *,
        address: str = "127.0.0.1",
        grpc_port: int = 0,
        metrics_port: int = 0,
        log_path: Path | None = None,
        verify: Callable[[Path, str, str], object] = lambda repository, name, version: None,
        probe: Callable[[str, str, str], object] = lambda grpc_url, name, served_as: None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.model_repository = model_repository
        self._named = list(models or [])
        if not self.models:
            raise TritonServerError(f"no ensemble in {model_repository}: publish one there or name another folder")
        self._address = address
        self._grpc_port, self._metrics_port = grpc_port or _free_port(), metrics_port or _free_port()
        self.grpc_url = f"{address}:{self._grpc_port}"
        self.metrics_url = f"http://{address}:{self._metrics_port}/metrics"
        self._id = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._directory = TEMPORARY / self._id
        self.log_path = log_path or self._directory / "tritonserver.log"
        self._verify, self._probe, self._arguments = verify, probe, arguments
        self._stopping, self._thread = Event(), Thread()

    @property
    def models(self) -> list[str]:
        """The ensembles to serve, as the repository is now."""
        return self._named or find_ensembles(self.model_repository)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, timeout_s: float = 120) -> None:
        """Returns when every ensemble is ready and the probe passed. Raises TritonServerError, and as verify does."""
        self._stopping.clear()
        self._client = InferenceServerClient(self.grpc_url, channel_args=[("grpc.max_reconnect_backoff_ms", 200)])
        started: Future[None] = Future()
        # The server is killed when the thread that started it ends, so that is the thread which tends it.
        self._thread = Thread(target=self._run, args=(timeout_s, started), name="tritonserver", daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server; returns when its processes and files are gone. Does nothing where none runs."""
        self._stopping.set()
        if self._thread.is_alive():
            self._client.close()  # so that a load in progress does not hold it up
            self._thread.join()

    def _run(self, timeout_s: float, started: Future[None]) -> None:
        try:
            _clean_up_after_the_dead()
            self._directory.mkdir()
            self._distribution = find_distribution()
            self._backends = self._distribution.assemble_backends(self._directory)
            probe = partial(self._probe, self.grpc_url)
            self._keeper = Keeper(self._client, self.model_repository, lambda: self.models, self._verify, probe)
            self._launch(timeout_s)
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
            self._watch(timeout_s)
            self._end()
        finally:
            _remove([self._directory, *SHARED_MEMORY.glob(f"{self._id}*")])

    def _launch(self, timeout_s: float) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._distribution.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the launcher
            )
        self._keeper.attach(self._process.pid)
        loader = ThreadPoolExecutor(1)
        try:
            self._wait_until(self._is_up, timeout_s)
            loading = loader.submit(self._keeper.serve_all)
            self._wait_until(loading.done, timeout_s)
            loading.result()
        except BaseException as error:
            self._process.kill()  # a server whose stub died would not end by itself
            self._end()
            if isinstance(error, InferenceServerException):
                raise self._error(f"Triton refuses the models: {error.message()}") from error
            raise
        finally:
            loader.shutdown()

    def _wait_until(self, done: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            if self._stopping.wait(0.1):
                raise self._error("stopped before tritonserver was ready")
            if self._process.poll() is not None:
                raise self._error(f"tritonserver ended with status {self._process.returncode} while it started")
            if self._keeper.find_dead():
                raise self._error("a Python stub died while tritonserver started; is onnxruntime installed?")
            if time.monotonic() > deadline:
                raise self._error(f"tritonserver was not ready after {timeout_s:g} s; a large model may need more")

    def _command(self) -> list[str]:
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # no server outlives its launcher
            str(self._distribution.executable),
            f"--id={self._id}",
            f"--model-repository={self.model_repository}",
            f"--backend-directory={self._backends}",
            f"--cache-directory={self._distribution.root / 'caches'}",
            f"--backend-config=python,shm-region-prefix-name={self._id}-",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self._keeper.as_published()),  # and their parts
            "--allow-http=false",
            f"--grpc-address={self._address}",
            f"--grpc-port={self._grpc_port}",
            f"--metrics-address={self._address}",
            f"--metrics-port={self._metrics_port}",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            *self._arguments,
        ]

    def _is_up(self) -> bool:
        """Also tells this server from another one that has the port."""
        try:
            return bool(self._client.get_server_metadata(client_timeout=2).name == self._id)
        except InferenceServerException:
            return False

    def _watch(self, timeout_s: float) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                if self._process.poll() is None:
                    self._keeper.tend()
                else:
                    logger.error("tritonserver died (status %s); starting it again", self._process.returncode)
                    self._end()  # its stubs may wait for it for ever
                    self._launch(timeout_s)
            except Exception:
                logger.exception("tending tritonserver failed; trying again")
                self._stopping.wait(RETRY_S)

    def _end(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S + 5)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and the stubs
        self._process.wait()

    def _error(self, fault: str) -> TritonServerError:
        with self.log_path.open(errors="replace") as log:
            tail = "".join(deque(log, 25))
        return TritonServerError(f"{fault}\nThe end of {self.log_path}:\n{tail}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _clean_up_after_the_dead() -> None:
    """Ends the stubs and removes the files that launchers which were killed left behind."""
    files = [*SHARED_MEMORY.glob(f"{PREFIX}*"), *TEMPORARY.glob(f"{PREFIX}*")]
    dead = [file for file in files if not psutil.pid_exists(int(file.name.removeprefix(PREFIX).partition("-")[0]))]
    for process in psutil.process_iter(["cmdline"]):
        executable = Path(next(iter(process.info["cmdline"] or []), ""))
        if any(executable.is_relative_to(directory) for directory in dead):
            with suppress(psutil.Error):
                process.kill()
    _remove(dead)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # somebody else's, or gone by now
                path.unlink()
