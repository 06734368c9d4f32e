"""Keeps a running tritonserver's models alive and up to date; the only code that loads or unloads models."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import ModelConfig

from runtime.repository import parts, read_config, releases, version_of

STUB = "triton_python_backend_stub"
LOAD_TIMEOUT_S = 600
CANDIDATE = ".candidate"  # ends the name under which a new version is tried

logger = logging.getLogger(__name__)


class Keeper:
    """Tends the ensembles that `find` names of a server process, and of the next one after it; `verify` and `probe` are
    as in `TritonServer`, the latter without its first argument."""

    def __init__(
        self,
        client: InferenceServerClient,
        repository: Path,
        find: Callable[[], Sequence[str]],
        verify: Callable[[Path, str, str], object],
        probe: Callable[[str, str], object],
    ) -> None:
        self._client, self._repository, self._find = client, repository, find
        self._verify, self._probe = verify, probe
        self._published = {name: read_config(repository, name) for name in find()}
        self._served: dict[str, ModelConfig] = {}

    def attach(self, server_pid: int) -> None:
        """Tends this process from now on; nothing is loaded in it."""
        self._server = psutil.Process(server_pid)
        self._model_of_stub: dict[int, str] = {}
        self._suspects: set[int] = set()
        self._buried: set[int] = set()
        self._broken: set[str] = set()

    def as_published(self) -> list[str]:
        """The ensembles that a new process can load by itself, before it takes requests."""
        return [name for name, config in self._served.items() if config == self._published[name]]

    def serve_all(self) -> None:
        """Loads what the process before served or, in the first one, the newest versions that can be served. Raises
        what is wrong with the newest where none can; what was never served keeps no other process from serving."""
        is_first = not self._served
        for name in self._published:
            if name in self.as_published():
                self._verify(self._repository, name, str(version_of(self._served[name])))
                self._probe(name, name)
            elif name in self._served:
                self._serve(name, self._served[name])
            else:
                with nullcontext() if is_first else suppress(Exception):  # it is in the log
                    self._serve_newest(name)

    def tend(self) -> None:
        """One look at the stubs and the repository, and what follows. Raises if Triton refuses; then call again."""
        self._broken |= self.find_dead()  # first: a file that nobody can read must keep nothing dead
        for model in sorted(self._broken):
            self._revive(model)
            self._broken.discard(model)
        for name in self._find():
            config = read_config(self._repository, name)
            if config != self._published.get(name):
                self._published[name] = config  # a version that cannot be served is tried once, not at every look
                self._bring_in(name, config)

    def find_dead(self) -> set[str]:
        """Models whose Python stub died. Triton reaps the stubs that it ends itself; one it lost stays a zombie."""
        zombies = set()
        with suppress(psutil.Error):  # one ended while we looked: see next time
            for child in self._server.children():
                if child.status() == psutil.STATUS_ZOMBIE:
                    zombies.add(child.pid)
                elif child.name() == STUB:  # its first argument: <repository>/<model>/<version>/model.onnx
                    self._model_of_stub[child.pid] = Path(child.cmdline()[1]).parts[-3]
        dead = (zombies & self._suspects) - self._buried
        self._suspects = zombies
        self._buried = (self._buried & zombies) | dead
        everything = {part for config in self._published.values() for part in parts(config)}
        return set().union(*({self._model_of_stub[pid]} if pid in self._model_of_stub else everything for pid in dead))

    def _revive(self, model: str) -> None:
        logger.warning("the Python stub of %s died; loading the model again", model)
        ensembles = [config for config in self._served.values() if model in parts(config)]
        self._client.unload_model(model)  # Triton holds it for ready: loading alone would do nothing
        self._load_part(model, {parts(config)[model] for config in ensembles})
        for config in ensembles:
            self._load(config)

    def _serve_newest(self, name: str) -> None:
        faults = []
        for config in releases(self._repository, name):
            try:
                self._serve(name, config)
            except Exception as error:
                logger.error("version %d of %s cannot be served: %s", version_of(config), name, error)
                faults.append(error)
            else:
                return
        raise faults[0]

    def _bring_in(self, name: str, config: ModelConfig) -> None:
        """Serves a newly published version, or goes on with the one before, if there is one."""
        logger.info("%s was published; loading it", name)
        try:
            self._serve(name, config)
        except Exception as error:
            logger.error("the new version of %s cannot be served, the one before stays: %s", name, error)
            if name in self._served:
                self._load(self._served[name])
        else:
            logger.info("%s is served as published", name)

    def _serve(self, name: str, config: ModelConfig) -> None:
        """Loads a version beside the served one and, if its files and answers are right, in its place."""
        self._verify(self._repository, name, str(version_of(config)))
        served = parts(self._served.get(name, config))
        for part, version in parts(config).items():
            self._load_part(part, {version, served.get(part, version)})
        self._try(name, config)
        self._load(config)
        self._served[name] = config

    def _try(self, name: str, config: ModelConfig) -> None:
        """Raises as the probe does. The ensemble is asked under a name of its own: all requests still get the version
        before."""
        candidate = ModelConfig()
        candidate.CopyFrom(config)
        candidate.name = f"{name}{CANDIDATE}"
        # Triton takes a model from outside the repository with a file only
        files = {f"file:{version_of(config)}/candidate": b"-"}
        try:
            self._load(candidate, files)
            self._probe(name, candidate.name)
        finally:
            self._client.unload_model(candidate.name)

    def _load_part(self, name: str, versions: set[int]) -> None:
        """Loads these versions alone, whichever the file names: that may be a refused one."""
        config = read_config(self._repository, name)
        config.version_policy.specific.versions[:] = sorted(versions)
        self._load(config)

    def _load(self, config: ModelConfig, files: dict[str, bytes] | None = None) -> None:
        config_json = MessageToJson(config, preserving_proto_field_name=True)
        self._client.load_model(config.name, config=config_json, files=files, client_timeout=LOAD_TIMEOUT_S)
