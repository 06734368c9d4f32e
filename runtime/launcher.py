"""Runs the real tritonserver over a model repository and keeps it running.

with TritonServer(Path("model_repository")) as server:
    print(server.grpc_url)
"""

import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Self
from urllib.parse import urlsplit

import psutil
from tritonclient.grpc import InferenceServerClient, InferenceServerException

from referent.core.bundle import bundle_names
from referent.triton.repository import Device, Placement, ServingMode
from runtime.distribution import find_distribution
from runtime.health import Health
from runtime.supervisor import Supervisor

POLL_S = 0.5
RETRY_S = 2
UP_TIMEOUT_S = 60  # for a server without models
CUDA_POOL = "--cuda-memory-pool-byte-size=0:1073741824"  # for features between the steps; the default holds few
EXIT_TIMEOUT_S = 3  # for requests in flight when the server stops
CONTROL, CONTROL_HEADER = ("model-repository", "logging", "trace"), "referent"
SOCKET_NAME_BYTES = 107  # of Linux
PREFIX = "referent-triton-"  # of our files in the two folders below; the launcher's process id follows
SHARED_MEMORY, TEMPORARY = Path("/dev/shm"), Path(tempfile.gettempdir())

logger = logging.getLogger(__name__)


class TritonServerError(RuntimeError):
    """tritonserver did not start; the message ends with the tail of its log."""


class ServerEndedError(TritonServerError):
    """tritonserver ended during its start."""


class TritonServer:
    """A tritonserver (gRPC and metrics, no HTTP) over a private repository, and a thread that supervises it.

    The thread starts the server again when it dies, reloads a model whose Python stub died or that somebody unloaded,
    replaces one that is stuck, and serves new versions: once NAME/config.pbtxt names another digest, that version is
    loaded and tried beside the current one, and replaces it if its files and answers are right. A version that cannot
    be served is logged and changes nothing; a first start falls back to older versions in the same way.

    model_repository: of published versions; nothing is written there.
    models: ensembles to serve; by default all of the repository, those too that are published later.
    device: "cpu" or "gpu", by default the GPU where there is one that ONNX Runtime can use.
    mode, gpu_memory_gb: as `referent.triton.repository.Placement` has them.
    grpc_port: None listens on a Unix socket that this user alone can reach; a number opens TCP at `address`, 0 a free
    port. Loading models, logging and tracing take a key that only this object has; so does shared memory unless
    `shared_memory`.
    metrics_port: at `address`; 0 picks a free one.
    log_path: file to append the server's log to; by default a temporary one.
    load_timeout_s, golden_timeout_s: for loading a model and for its golden inference; by default by its size.
    """

    def __init__(
        self,
        model_repository: Path,
        models: Sequence[str] | None = None,
        *,
        device: Device | None = None,
        mode: ServingMode = "latency",
        gpu_memory_gb: float | None = None,
        address: str = "127.0.0.1",
        grpc_port: int | None = None,
        metrics_port: int = 0,
        shared_memory: bool = False,
        log_path: Path | None = None,
        load_timeout_s: float | None = None,
        golden_timeout_s: float | None = None,
    ) -> None:
        self.model_repository, self._wanted = model_repository, list(models or [])
        if not self.models:
            raise TritonServerError(f"no ensemble in {model_repository}: publish one there or name another folder")
        self._device, self._mode, self._gpu_memory_gb = device, mode, gpu_memory_gb
        self._id = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._directory = TEMPORARY / self._id
        self._private = self._directory / "models"
        self._metrics_port = metrics_port or free_port()
        self.metrics_url = f"http://{address}:{self._metrics_port}/metrics"
        self._address, self._grpc_port = address, free_port() if grpc_port == 0 else grpc_port or 0
        self._has_port = grpc_port is not None
        if not self._has_port:  # Triton ends a socket's name with the port
            self._address = f"unix:{self._directory}/socket"
        self.grpc_url = f"{self._address}:{self._grpc_port}"
        if len(self.grpc_url.removeprefix("unix:")) > SOCKET_NAME_BYTES:
            raise TritonServerError(f"{self.grpc_url} is too long for a socket: set TMPDIR to a shorter folder")
        self._key, self._shared_memory = secrets.token_hex(16), shared_memory
        self.log_path = log_path or self._directory / "tritonserver.log"
        self._limits = load_timeout_s, golden_timeout_s
        self._stopping, self._thread = Event(), Thread()

    @property
    def models(self) -> list[str]:
        """The ensembles to serve, as the repository is now."""
        return self._wanted or bundle_names(self.model_repository)

    @property
    def golden_s(self) -> float:
        """How long the slowest golden inference of what is served took."""
        return max((served.golden_s for served in self._supervisor.served.values()), default=0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once all ensembles that can be served are served. Raises TritonServerError if there is none."""
        self._stopping.clear()
        self._client = InferenceServerClient(self.grpc_url, channel_args=[("grpc.max_reconnect_backoff_ms", 200)])
        started: Future[None] = Future()
        # The server is killed when the thread that started it ends, so that is the thread which supervises it.
        self._thread = Thread(target=self._run, args=(started,), name="tritonserver", daemon=True)
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server; returns when its processes and files are gone. Does nothing if none runs."""
        self._stopping.set()
        if self._thread.is_alive():
            self._client.close()  # so that a load in progress does not hold it up
            self._thread.join()

    def _run(self, started: Future[None]) -> None:
        try:
            _clean_up_after_the_dead()
            self._directory.mkdir(mode=0o700)
            self._private.mkdir()
            self._distribution = find_distribution()
            self._backends = self._distribution.assemble_backends(self._directory)
            device = self._device or self._distribution.best_device()
            self._placement = Placement(device, self._mode, self._gpu_memory_gb)
            logger.info("models run on the %s, mode %s", device, self._mode)
            headers = {f"triton-grpc-protocol-{CONTROL_HEADER}": self._key}
            places = self.model_repository, self._private, lambda: self.models
            self._supervisor = Supervisor(self._client, self.grpc_url, headers, *places, self._placement, *self._limits)
            self._launch()
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
            self._watch()
            self._end()
        finally:
            _remove([self._directory, *SHARED_MEMORY.glob(f"{self._id}*")])

    def _launch(self) -> None:
        """Starts the server; returns once everything that can be served is. Raises TritonServerError if nothing can."""
        while True:
            try:
                self._start_process()
            except ServerEndedError:
                if not self._note_end():
                    raise
            else:
                return

    def _check_ports(self) -> None:
        """tritonserver itself would end a little after it said that it is ready. Raises TritonServerError."""
        host = str(urlsplit(self.metrics_url).hostname)
        ports = {"--metrics-port": self._metrics_port} | ({"--grpc-port": self._grpc_port} if self._has_port else {})
        for option, port in ports.items():
            try:
                socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
            except OSError as error:
                raise TritonServerError(
                    f"port {port} of {host} can't be had ({error.strerror}): name another with {option}"
                ) from error

    def _start_process(self) -> None:
        self._check_ports()
        self._started = self._looked = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._distribution.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the launcher
            )
        try:
            self._wait_until(self._is_up, UP_TIMEOUT_S)
            self._supervisor.attach(self._process.pid)
            self._wait_until(self._has_settled)
            if not self._supervisor.served:
                raise self._error("; ".join(f"{name}: {why}" for name, why in self._supervisor.faults.items()))
        except BaseException:
            self._process.kill()  # a server whose stub died would not end by itself
            self._end()
            raise

    def _has_settled(self) -> bool:
        try:
            self._supervisor.reconcile()
        except (InferenceServerException, OSError) as error:
            if time.monotonic() - self._looked > UP_TIMEOUT_S:
                raise self._error(f"tritonserver gave no answer for {UP_TIMEOUT_S} s while it started") from error
            logger.warning("a look at the models failed, trying again: %s", error)
            self._stopping.wait(POLL_S)
            return False
        self._looked = time.monotonic()
        return self._supervisor.settled

    def _note_end(self) -> bool:
        return self._supervisor.note_end(crashed=self._process.returncode in (-signal.SIGSEGV, -signal.SIGABRT))

    def _wait_until(self, done: Callable[[], bool], timeout_s: float = math.inf) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            if self._stopping.wait(0.1):
                raise self._error("stopped before tritonserver was ready")
            if self._process.poll() is not None:
                status = self._process.returncode
                raise ServerEndedError(str(self._error(f"tritonserver ended with status {status} while it started")))
            if time.monotonic() > deadline:
                raise self._error(f"tritonserver did not answer within {timeout_s:g} s")

    def _command(self) -> list[str]:
        closed = [*CONTROL, *([] if self._shared_memory else ["shared-memory"])]
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # no server outlives its launcher
            str(self._distribution.executable),
            f"--id={self._id}",
            f"--model-repository={self._private}",
            f"--backend-directory={self._backends}",
            f"--cache-directory={self._distribution.root / 'caches'}",
            f"--backend-config=python,shm-region-prefix-name={self._id}-",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--allow-http=false",
            f"--grpc-address={self._address}",
            f"--grpc-port={self._grpc_port}",
            f"--grpc-restricted-protocol={','.join(closed)}:{CONTROL_HEADER}={self._key}",
            f"--metrics-address={urlsplit(self.metrics_url).hostname}",
            f"--metrics-port={self._metrics_port}",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            *([CUDA_POOL] if self._placement.device == "gpu" else []),
        ]

    def _is_up(self) -> bool:
        """Whether this server answers, and not another one at the same port."""
        try:
            return bool(self._client.get_server_metadata(client_timeout=2).name == self._id)
        except InferenceServerException:
            return False

    def _watch(self) -> None:
        places = self.model_repository, self.grpc_url, self.metrics_url
        health = Health(*places, lambda: dict(self._supervisor.served))
        while not self._stopping.wait(POLL_S):
            try:
                while not health.stuck.empty():
                    name, whole = health.stuck.get()
                    if whole or not self._supervisor.replace(name):
                        self._process.kill()
                        self._process.wait()
                if self._process.poll() is None:
                    self._supervisor.reconcile()
                else:
                    logger.error("tritonserver ended (status %s); starting it again", self._process.returncode)
                    self._note_end()
                    health.stop()
                    self._end()  # its stubs may wait for it for ever
                    if time.monotonic() - self._started < UP_TIMEOUT_S:  # it may end as soon again
                        self._stopping.wait(RETRY_S)
                    self._launch()
                    health = Health(*places, lambda: dict(self._supervisor.served))
            except Exception:
                if self._stopping.is_set():
                    break
                logger.exception("supervising tritonserver failed; trying again")
                self._stopping.wait(RETRY_S)
        health.stop()

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


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _clean_up_after_the_dead() -> None:
    """Ends the stubs and removes the files of this user's launchers that were killed. Other files with such names are
    left alone."""
    dead = [path for folder in (SHARED_MEMORY, TEMPORARY) for path in folder.glob(f"{PREFIX}*") if _is_left_over(path)]
    for process in psutil.process_iter(["cmdline"]):
        executable = Path(next(iter(process.info["cmdline"] or []), ""))
        if any(executable.is_relative_to(directory) for directory in dead):
            with suppress(psutil.Error):
                process.kill()
    _remove(dead)


def _is_left_over(path: Path) -> bool:
    launcher = re.match(rf"{PREFIX}(\d{{1,9}})-[0-9a-f]{{8}}", path.name)
    with suppress(OSError):
        status = path.lstat()
        own = status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode)
        return launcher is not None and own and not psutil.pid_exists(int(launcher[1]))
    return False  # gone by now


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # somebody else's, or gone by now
                path.unlink()
