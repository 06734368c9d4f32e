"""The launcher and the Python backend on the real tritonserver, with an ensemble of two tiny graphs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx.parser
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput

from runtime.distribution import Distribution
from runtime.launcher import PREFIX, SHARED_MEMORY, TEMPORARY, TritonServer, TritonServerError

PART = """
backend: "onnxruntime"
max_batch_size: 8
dynamic_batching { max_queue_delay_microseconds: 20000 }
version_policy { specific { versions: VERSION } }
instance_group { kind: KIND_CPU count: 1 }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
"""
ADD = 'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "sum" data_type: TYPE_FP32 dims: 4 }'
PICK = """
input [ { name: "sum" data_type: TYPE_FP32 dims: 4 }, { name: "index" data_type: TYPE_INT64 dims: -1 } ]
output { name: "picked" data_type: TYPE_FP32 dims: -1 }
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
version_policy { specific { versions: VERSION } }
input [ { name: "x" data_type: TYPE_FP32 dims: 4 }, { name: "index" data_type: TYPE_INT64 dims: -1 } ]
output { name: "picked" data_type: TYPE_FP32 dims: -1 }
ensemble_scheduling {
  step {
    model_name: "tiny_add" model_version: VERSION
    input_map { key: "x" value: "x" } output_map { key: "sum" value: "sum" }
  }
  step {
    model_name: "tiny_pick" model_version: VERSION
    input_map [ { key: "sum" value: "sum" }, { key: "index" value: "index" } ]
    output_map { key: "picked" value: "picked" }
  }
}
"""
X = np.arange(4, dtype=np.float32)[None]  # (1, 4)


def publish(repository: Path, version: int, constant: float) -> None:
    """Publishes picked = (x + constant)[index] as the export does: parts first, the ensemble's config last."""
    add = f"(float[B, 4] x) => (float[B, 4] sum) {{ c = Constant <value = float {{{constant}}}> () sum = Add(x, c) }}"
    pick = (
        "(float[B, 4] sum, int64[B, N] index) => (float[B, N] picked) {picked = GatherElements <axis = 1>(sum, index)}"
    )
    for name, config, graph in (("tiny_add", ADD, add), ("tiny_pick", PICK, pick)):
        (repository / name / str(version)).mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(PART.replace("VERSION", str(version)) + config)
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {name} {graph}')
        onnx.save(model, repository / name / str(version) / "model.onnx")
    (repository / "tiny" / str(version)).mkdir(parents=True)
    (repository / "tiny" / str(version) / "config.pbtxt").write_text(ENSEMBLE.replace("VERSION", str(version)))
    shutil.copy(repository / "tiny" / str(version) / "config.pbtxt", repository / "tiny" / "next")
    os.replace(repository / "tiny" / "next", repository / "tiny" / "config.pbtxt")


def ground(server: TritonServer, *index: int) -> list[float]:
    """Sends one request through the ensemble."""
    inputs = [InferInput("x", [1, 4], "FP32"), InferInput("index", [1, len(index)], "INT64")]
    inputs[0].set_data_from_numpy(X)
    inputs[1].set_data_from_numpy(np.array([index], np.int64))
    with InferenceServerClient(server.grpc_url) as client:
        return list(client.infer("tiny", inputs, client_timeout=5).as_numpy("picked")[0])


def wait_until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def answers(server: TritonServer, *expected: float) -> bool:
    """Whether picking 0 and 3 gives the expected values; False while requests fail."""
    try:
        return ground(server, 0, 3) == list(expected)
    except InferenceServerException:
        return False


def stubs(server: TritonServer) -> list[psutil.Process]:
    """The server's live stub processes."""
    children = psutil.Process(server._process.pid).children()
    return [c for c in children if c.status() != psutil.STATUS_ZOMBIE and c.name() == "triton_python_backend_stub"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("repository")
    publish(repository, 1, constant=1)
    with TritonServer(repository) as server:
        yield server


def test_ensemble_answers(server: TritonServer) -> None:
    assert ground(server, 0, 3) == [1, 4]
    assert ground(server) == []


def test_concurrent_requests_are_batched_and_a_bad_one_fails_alone(server: TritonServer) -> None:
    def outcome(index: int) -> object:
        try:
            return ground(server, index)
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(outcome, [0, 1, 99, 3] * 8))

    assert [o for o in outcomes if isinstance(o, list)] == [[1], [2], [4]] * 8
    for error in outcomes[2::4]:
        assert isinstance(error, InferenceServerException)
        assert error.status() == "StatusCode.INVALID_ARGUMENT"
        assert (
            error.message()
            == "in ensemble 'tiny', operator GatherElements refuses the values or shapes of this request"
        )
    with InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics("tiny_pick").model_stats[0]
    assert statistics.execution_count < statistics.inference_count


def test_killed_stub_is_healed(server: TritonServer) -> None:
    victim = next(stub for stub in stubs(server) if "tiny_add" in stub.cmdline()[1])
    victim.kill()
    wait_until(lambda: answers(server, 1, 4))
    assert len(stubs(server)) == 2


def test_killed_server_is_started_again(server: TritonServer) -> None:
    server._process.kill()
    wait_until(lambda: not answers(server, 1, 4))
    wait_until(lambda: answers(server, 1, 4))


def test_published_version_is_served_next(server: TritonServer) -> None:
    publish(server.model_repository, 2, constant=100)
    wait_until(lambda: answers(server, 100, 103))


def test_name_that_is_new_is_served_too(tmp_path: Path) -> None:
    publish(tmp_path, 1, constant=1)
    with TritonServer(tmp_path) as server, InferenceServerClient(server.grpc_url) as client:
        shutil.copytree(tmp_path / "tiny", tmp_path / ".other")
        os.rename(tmp_path / ".other", tmp_path / "other")
        wait_until(lambda: bool(client.is_model_ready("other")))
        assert answers(server, 1, 4)
    assert server.models == ["other", "tiny"]


def test_broken_version_leaves_the_one_before(server: TritonServer, caplog: pytest.LogCaptureFixture) -> None:
    before = ground(server, 0, 3)
    publish(server.model_repository, 3, constant=7)
    # Published whole, then damaged before the launcher's next look: what verify is there to find, but it has none here.
    (server.model_repository / "tiny_add" / "3" / "model.onnx").write_bytes(b"no model")
    wait_until(lambda: "cannot be served" in caplog.text)
    assert ground(server, 0, 3) == before


def test_version_that_the_probe_refuses_is_never_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def probe(grpc_url: str, name: str, served_as: str) -> None:
        with InferenceServerClient(grpc_url) as client:
            if client.get_model_metadata(served_as).versions == ["2"]:
                assert client.get_model_metadata(name).versions == ["1"]
                raise ValueError("nonsense")

    publish(tmp_path, 1, constant=1)
    with TritonServer(tmp_path, probe=probe) as server:
        publish(tmp_path, 2, constant=100)
        wait_until(lambda: "cannot be served, the one before stays: nonsense" in caplog.text)
        assert ground(server, 0, 3) == [1, 4]
        with InferenceServerClient(server.grpc_url) as client:
            wait_until(lambda: not client.is_model_ready("tiny.candidate"))


def none_of_hundreds(grpc_url: str, name: str, served_as: str) -> None:
    """A probe that refuses versions published with a constant from 100 on."""
    inputs = [InferInput("x", [1, 4], "FP32"), InferInput("index", [1, 1], "INT64")]
    inputs[0].set_data_from_numpy(X)
    inputs[1].set_data_from_numpy(np.array([[0]], np.int64))
    with InferenceServerClient(grpc_url) as client:
        if (answer := client.infer(served_as, inputs).as_numpy("picked")[0, 0]) >= 100:
            raise ValueError(f"{answer:g} is too much")


def test_refused_versions_in_a_row_leave_the_good_one_whatever_dies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 1, constant=1)
    with TritonServer(tmp_path, probe=none_of_hundreds) as server:
        for version in (2, 3):
            publish(tmp_path, version, constant=100 * version)
            wait_until(lambda version=version: f"{100 * version} is too much" in caplog.text)
            assert ground(server, 0, 3) == [1, 4]
        next(stub for stub in stubs(server) if "tiny_add/1" in stub.cmdline()[1]).kill()
        wait_until(lambda: "died" in caplog.text)
        wait_until(lambda: answers(server, 1, 4))
        server._process.kill()
        wait_until(lambda: not answers(server, 1, 4))
        wait_until(lambda: answers(server, 1, 4))
    with TritonServer(tmp_path, probe=none_of_hundreds) as server:
        assert ground(server, 0, 3) == [1, 4]
        publish(tmp_path, 4, constant=4)
        wait_until(lambda: answers(server, 4, 7))
        (tmp_path / "tiny_add" / "3" / "model.onnx").write_bytes(b"no model")  # what is not served cannot hold it up
        server._process.kill()
        wait_until(lambda: not answers(server, 4, 7))
        wait_until(lambda: answers(server, 4, 7))
        shutil.copy(tmp_path / "tiny" / "1" / "config.pbtxt", tmp_path / "tiny" / "config.pbtxt")  # roll back
        wait_until(lambda: answers(server, 1, 4))


def test_name_that_cannot_be_served_keeps_no_other_from_coming_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 1, constant=1)
    with TritonServer(tmp_path) as server:
        shutil.copytree(tmp_path / "tiny", tmp_path / ".other")
        config = tmp_path / ".other" / "config.pbtxt"
        config.write_text(config.read_text().replace("tiny_pick", "tiny_gone"))
        os.rename(tmp_path / ".other", tmp_path / "other")
        wait_until(lambda: "the new version of other cannot be served" in caplog.text)
        server._process.kill()
        wait_until(lambda: not answers(server, 1, 4))
        wait_until(lambda: answers(server, 1, 4))


def left_by(pid: int) -> list[Path]:
    """Files of a launcher process."""
    return [path for folder in (SHARED_MEMORY, TEMPORARY) for path in folder.glob(f"{PREFIX}{pid}-*")]


def test_killed_launcher_takes_the_server_along_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    publish(tmp_path, 1, constant=1)
    script = f"""
import time, pathlib, runtime.launcher
server = runtime.launcher.TritonServer(pathlib.Path({str(tmp_path)!r}))
server.start()
print(server._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout
        orphan = psutil.Process(int(launcher.stdout.readline()))
        family = [orphan, *orphan.children()]
        launcher.send_signal(signal.SIGKILL)
    wait_until(lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in family))
    assert left_by(launcher.pid)

    others = left_by(os.getpid())
    with TritonServer(tmp_path) as server:
        assert ground(server, 0, 3) == [1, 4]
        assert not left_by(launcher.pid)
        family = [psutil.Process(server._process.pid), *stubs(server)]
        assert len(left_by(os.getpid())) > len(others)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert left_by(os.getpid()) == others


def refuse(repository: Path, name: str, version: str) -> None:
    raise ValueError(f"{name} is not as published")


def test_start_refuses_what_verify_refuses(tmp_path: Path) -> None:
    publish(tmp_path, 1, constant=1)
    with pytest.raises(ValueError, match="tiny is not as published"):
        TritonServer(tmp_path, verify=refuse).start()


def test_start_names_a_corrupt_model(tmp_path: Path) -> None:
    publish(tmp_path, 1, constant=1)
    (tmp_path / "tiny_add" / "1" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(TritonServerError, match=r"tiny_add(.|\n)*Protobuf parsing failed"):
        TritonServer(tmp_path).start()


def test_start_names_an_empty_repository(tmp_path: Path) -> None:
    with pytest.raises(TritonServerError, match="no ensemble in"):
        TritonServer(tmp_path)


def test_stub_that_cannot_run_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, 1, constant=1)
    monkeypatch.setattr(Distribution, "environment", lambda self: dict(os.environ))  # no library path
    with pytest.raises(TritonServerError, match=r"stub died(.|\n)*error while loading shared libraries"):
        TritonServer(tmp_path).start()


def test_start_gives_up_after_its_timeout(tmp_path: Path) -> None:
    publish(tmp_path, 1, constant=1)
    os.mkfifo(tmp_path / "fifo")  # reading it as a model never ends
    os.replace(tmp_path / "fifo", tmp_path / "tiny_add" / "1" / "model.onnx")
    others = left_by(os.getpid())
    with pytest.raises(TritonServerError, match="not ready after 1 s"):
        TritonServer(tmp_path).start(timeout_s=1)
    assert left_by(os.getpid()) == others
