"""The launcher on the real tritonserver, with a model that finds the same box everywhere."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, InferenceServerException

from runtime import attempt
from runtime.distribution import Distribution
from runtime.launcher import CONTROL_HEADER, PREFIX, SHARED_MEMORY, TEMPORARY, TritonServer, TritonServerError
from tests.support.launched import answers, ground, kill, stubs
from tests.support.load import process_of, until
from tests.support.releases import break_head, publish_tiny


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("served") / "repository"
    publish_tiny(repository)
    with TritonServer(repository) as server:
        yield server


def test_server_is_reached_by_its_user_alone(server: TritonServer) -> None:
    path = Path(server.grpc_url.removeprefix("unix:"))
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert (path.parent.stat().st_mode & 0o777, path.parent.stat().st_uid) == (0o700, os.getuid())
    own = {c.laddr.port for c in process_of(server).net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert own == {int(server.metrics_url.split(":")[2].split("/")[0])}
    assert ground(server) == 0.5


def orders(client: InferenceServerClient, headers: dict[str, str] | None = None) -> list[str]:
    """Which orders Triton takes."""
    taken = []
    for order, call in {
        "load": lambda: client.load_model("tiny", headers=headers),
        "unload": lambda: client.unload_model("nothing", headers=headers),
        "index": lambda: client.get_model_repository_index(headers=headers),
        "log": lambda: client.update_log_settings({"log_verbose_level": 0}, headers=headers),
        "trace": lambda: client.update_trace_settings(settings={"trace_level": ["OFF"]}, headers=headers),
        "shared memory": lambda: client.get_system_shared_memory_status(headers=headers),
    }.items():
        refusal = ""
        try:
            call()
        except InferenceServerException as error:
            refusal = error.message()
        if "This protocol is restricted" not in refusal:
            taken.append(order)
    return taken


def test_nobody_gives_orders(server: TritonServer) -> None:
    with InferenceServerClient(server.grpc_url) as client:
        assert orders(client) == []


@pytest.mark.parametrize("shared_memory", [False, True])
def test_port_takes_inferences_and_no_orders_but_the_one_that_was_opened(
    server: TritonServer, shared_memory: bool
) -> None:
    with TritonServer(server.model_repository, grpc_port=0, shared_memory=shared_memory) as other:
        assert other.grpc_url.startswith("127.0.0.1:")
        assert ground(other) == 0.5
        with InferenceServerClient(other.grpc_url) as client:
            assert orders(client) == (["shared memory"] if shared_memory else [])


def test_killed_stub_is_healed(server: TritonServer) -> None:
    [victim] = stubs(server, "tiny_box_head")
    victim.kill()
    until(lambda: stubs(server, "tiny_box_head") not in ([], [victim]))
    until(lambda: answers(server, 0.5))
    assert len(stubs(server)) == 3


@pytest.mark.parametrize(("part", "running"), [("", 3), ("tiny_vision_encoder", 1), ("tiny_box_head", 1)])
def test_stubs_that_die_again_while_they_are_restored_are_healed(
    server: TritonServer, part: str, running: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that has no memory for some seconds: Triton itself may wait for them for ever."""
    monkeypatch.setattr(attempt, "HANG_S", 2)

    def tried_in_vain() -> bool:
        if len(stubs(server)) >= running:
            for stub in stubs(server, part):
                stub.kill()
        return "cannot be served" in caplog.text

    until(tried_in_vain)
    until(lambda: answers(server, 0.5))
    assert len(stubs(server)) == 3


@pytest.mark.parametrize("model", ["tiny", "tiny_language_model", "all"])
def test_model_that_was_unloaded_is_served_again(server: TritonServer, model: str) -> None:
    headers = {f"triton-grpc-protocol-{CONTROL_HEADER}": server._key}
    with InferenceServerClient(server.grpc_url) as client:
        for loaded in client.get_model_repository_index(headers=headers).models:
            if loaded.name.partition("@")[0] == model or model == "all":
                client.unload_model(loaded.name, headers=headers)
    until(lambda: answers(server, 0.5))


def test_killed_server_is_started_again(server: TritonServer) -> None:
    kill(server, 0.5)


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For temporary files: in the machine's other launchers clean up too. Short, since it has a socket."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr("runtime.launcher.TEMPORARY", Path(folder))
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_killed_launcher_takes_the_server_along_and_the_next_one_cleans_up(tmp_path: Path, own_folder: Path) -> None:
    def left_by(pid: int) -> list[Path]:
        return [path for folder in (SHARED_MEMORY, own_folder) for path in folder.glob(f"{PREFIX}{pid}-*")]

    repository = tmp_path / "repository"
    publish_tiny(repository)
    script = f"""
import time, pathlib, runtime.launcher
server = runtime.launcher.TritonServer(pathlib.Path({str(repository)!r}))
server.start()
print(server._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout
        orphan = psutil.Process(int(launcher.stdout.readline()))
        family = [orphan, *orphan.children()]
        launcher.send_signal(signal.SIGKILL)
    until(lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in family))
    assert left_by(launcher.pid)

    others = left_by(os.getpid())
    with TritonServer(repository) as server:
        assert ground(server) == 0.5
        assert not left_by(launcher.pid)
        family = [process_of(server), *stubs(server)]
        assert len(left_by(os.getpid())) > len(others)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert left_by(os.getpid()) == others


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_files_of_others_stop_no_start_and_stay(server: TritonServer, tmp_path: Path, dead_pid: int) -> None:
    target = tmp_path / "target"
    target.mkdir()
    foreign = [TEMPORARY / f"{PREFIX}{name}" for name in ("notes", "", "99999999999999999999-abcdef12", "-1-x", "1")]
    link = TEMPORARY / f"{PREFIX}{dead_pid}-abcdef12"
    try:
        for path in foreign:
            path.touch()
        link.symlink_to(target)
        with TritonServer(server.model_repository) as other:
            assert ground(other) == 0.5
        assert all(path.exists() for path in [*foreign, link, target])
    finally:
        for path in [*foreign, link]:
            path.unlink()


def test_start_names_what_is_wrong_with_the_only_version(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "repository")
    break_head(tmp_path / "repository", "tiny")
    with pytest.raises(TritonServerError, match=r"tiny: tiny_box_head/1/model.onnx is not the file"):
        TritonServer(tmp_path / "repository").start()


def test_start_names_a_graph_that_cannot_be_loaded(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "repository", edit=lambda parts: (parts / "box_head/model.onnx").write_bytes(b"no model"))
    with pytest.raises(TritonServerError, match=r"tiny_box_head(.|\n)*Protobuf parsing failed"):
        TritonServer(tmp_path / "repository").start()


def test_gpu_that_is_not_there_is_named(server: TritonServer) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has one")
    with pytest.raises(TritonServerError, match="KIND_GPU but no GPUs are available"):
        TritonServer(server.model_repository, device="gpu").start()


def test_start_names_an_empty_repository(tmp_path: Path) -> None:
    with pytest.raises(TritonServerError, match="no ensemble in"):
        TritonServer(tmp_path)


@pytest.mark.parametrize("option", ["metrics_port", "grpc_port"])
def test_port_that_is_taken_is_named(server: TritonServer, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        named = rf"port {port} of 127.0.0.1 .*--{option.replace('_', '-')}$"
        with pytest.raises(TritonServerError, match=named):
            TritonServer(server.model_repository, **{option: port}).start()


def test_folder_too_long_for_a_socket_is_named(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.launcher.TEMPORARY", Path("/tmp", "x" * 90))
    with pytest.raises(TritonServerError, match="set TMPDIR to a shorter folder"):
        TritonServer(server.model_repository)


def test_stub_that_cannot_run_ends_the_start(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distribution, "environment", lambda self: dict(os.environ))  # no library path
    with pytest.raises(TritonServerError, match=r"stub died(.|\n)*error while loading shared libraries"):
        TritonServer(server.model_repository).start()
