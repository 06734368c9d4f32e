"""A tritonserver as the vendor's container starts it: no launcher, nobody to load or unload a model."""

import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tritonclient.grpc import InferenceServerClient, InferenceServerException

from runtime.distribution import find_distribution
from tests.support.load import until


class PlainTriton:
    """Serves `model` of a repository, all of it where none is named."""

    def __init__(self, repository: Path, model: str | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as grpc, socket.create_server(("127.0.0.1", 0)) as metrics:
            ports = [listener.getsockname()[1] for listener in (grpc, metrics)]
        self.grpc_url, self.metrics_url = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/metrics"
        self._options = [f"--model-repository={repository}", "--allow-http=false", "--disable-auto-complete-config"]
        self._options += [f"--grpc-port={ports[0]}", f"--metrics-port={ports[1]}", "--exit-timeout-secs=3"]
        self._options += ["--model-control-mode=explicit", f"--load-model={model}"] if model else []
        self._folder = tempfile.TemporaryDirectory(prefix="plain-triton-")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()

    def start(self) -> None:
        """Starts it, once more where it has ended."""
        distribution, folder = find_distribution(), Path(self._folder.name)
        if not (folder / "backends").exists():
            distribution.assemble_backends(folder)
        self.log = folder / "log"
        with self.log.open("ab") as log:
            command = [
                *("setpriv", "--pdeathsig", "KILL", str(distribution.executable)),
                f"--backend-directory={folder / 'backends'}",
                f"--cache-directory={distribution.root / 'caches'}",
                *self._options,
            ]
            environment = distribution.environment()
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def comes_up(self) -> bool:
        """Whether it gets ready rather than ends."""
        with InferenceServerClient(self.grpc_url) as client:

            def ready() -> bool:
                try:
                    return bool(client.is_server_ready(client_timeout=2))
                except InferenceServerException:
                    return False

            until(lambda: ready() or self.process.poll() is not None)
            return self.process.poll() is None

    def wait_until_ready(self) -> None:
        assert self.comes_up(), self.log.read_text()[-3000:]
