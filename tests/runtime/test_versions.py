"""Versions that are published, refused and gone back to while the real tritonserver serves."""

from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from export.versions import use
from runtime.launcher import TritonServer
from tests.support.launched import answers, ground, kill, stubs
from tests.support.load import process_of, until
from tests.support.releases import break_head, deliver, publish_tiny, write_graph


def test_published_version_is_served_next_and_rolled_back(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    _, first = publish_tiny(repository, cx=0.4)
    with TritonServer(repository) as server:
        before = stubs(server)
        publish_tiny(repository, cx=0.6)
        until(lambda: answers(server, 0.6))
        until(lambda: len(stubs(server)) == 3)
        assert not any(stub.is_running() for stub in before)
        use(repository, "tiny", first)
        until(lambda: answers(server, 0.4))
        kill(server, 0.4)
    with TritonServer(repository) as server:
        assert ground(server) == 0.4


def test_version_of_other_shapes_takes_the_place_of_one(tmp_path: Path) -> None:
    """Parts of two versions stand beside one another, each with a config of its own."""
    repository = tmp_path / "repository"
    publish_tiny(repository, cx=0.4)
    with TritonServer(repository) as server:
        publish_tiny(repository, cx=0.6, hidden_size=6)
        until(lambda: answers(server, 0.6))


def test_name_that_is_new_is_served_too(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish_tiny(repository)
    with TritonServer(repository) as server:
        publish_tiny(repository, "other", cx=0.3)
        with InferenceServerClient(server.grpc_url) as client:
            until(lambda: bool(client.is_model_ready("other")))
        assert (ground(server), ground(server, "other")) == (0.5, 0.3)
        assert server.models == ["other", "tiny"]


def test_refused_versions_in_a_row_leave_the_good_one_whatever_dies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = tmp_path / "repository"
    publish_tiny(repository, cx=0.4)

    def cut(copy: Path, bundle: object) -> None:
        break_head(copy, "tiny")

    with TritonServer(repository) as server:
        for _ in range(2):
            _, refused = deliver(repository, cut)
            until(lambda refused=refused: f"{refused} of tiny cannot be served, the one before stays" in caplog.text)
            assert ground(server) == 0.4
        stubs(server, "tiny_box_head")[0].kill()
        until(lambda: "died" in caplog.text)
        until(lambda: answers(server, 0.4))
        kill(server, 0.4)
    with TritonServer(repository) as server:
        assert ground(server) == 0.4
        publish_tiny(repository, cx=0.6)
        until(lambda: answers(server, 0.6))
        break_head(repository, "tiny")  # what serves is damaged: a server that starts again serves one before
        process_of(server).kill()
        until(lambda: answers(server, 0.4))


def test_what_is_broken_keeps_nothing_else_from_being_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository = tmp_path / "repository"
    publish_tiny(repository)
    publish_tiny(repository, "cut")
    break_head(repository, "cut")
    publish_tiny(repository, "unnamed")
    (repository / "unnamed" / "config.pbtxt").write_bytes(b"\xff{")
    (repository / "junk" / "1").mkdir(parents=True)
    (repository / "junk" / "1" / "bundle.json").write_text("{")
    (repository / "empty").mkdir()
    (repository / "file").write_text("")
    (repository / "circle").symlink_to("circle")
    (repository / "tiny" / "notes").mkdir()
    (repository / "tiny" / "7").mkdir()
    with TritonServer(repository) as server:
        assert ground(server) == 0.5
        assert ground(server, "unnamed") == 0.5  # its version is whole
        assert "of cut cannot be served" in caplog.text
        publish_tiny(repository, cx=0.6)
        until(lambda: answers(server, 0.6))
        kill(server, 0.6)


def busy(parts: Path) -> None:
    """A box head whose loading folds constants for hours."""
    powers = "\n".join(f"m{i + 1} = MatMul (m{i}, m{i})" for i in range(2000))
    write_graph(
        parts / "box_head" / "model.onnx",
        f"""(float[B, N, 4] hidden_states) => (float[B, N, 4] boxes, float[B, N] scores) {{
            shape = Constant <value = int64[2] {{2000, 2000}}> ()
            m0 = ConstantOfShape <value = float[1] {{0.0}}> (shape)
            {powers}
            top = ReduceMax <keepdims = 0> (m2000)
            boxes = Add (hidden_states, top)
            last = Constant <value = int64[1] {{2}}> ()
            scores = ReduceSum <keepdims = 0> (boxes, last)
        }}""",
    )


def test_model_that_never_gets_ready_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository = tmp_path / "repository"
    publish_tiny(repository, cx=0.4)
    with TritonServer(repository, load_timeout_s=3, golden_timeout_s=1) as server:
        publish_tiny(repository, edit=busy)
        until(lambda: len(stubs(server, "tiny_box_head")) == 2)
        stubs(server, "tiny_vision_encoder")[0].kill()  # what serves is healed meanwhile
        until(lambda: answers(server, 0.4))
        until(lambda: "cannot be served, the one before stays" in caplog.text)
        until(lambda: len(stubs(server)) == 3)
        publish_tiny(repository, cx=0.6)
        until(lambda: answers(server, 0.6))


def test_server_that_is_killed_while_a_version_is_tried_serves_both_in_turn(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish_tiny(repository, cx=0.4)
    with TritonServer(repository) as server:
        publish_tiny(repository, cx=0.6)
        until(lambda: len(stubs(server)) > 3)
        process_of(server).kill()
        until(lambda: answers(server, 0.6))


def test_going_back_while_a_version_is_tried_goes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository = tmp_path / "repository"
    _, first = publish_tiny(repository, cx=0.4)
    with TritonServer(repository) as server:
        publish_tiny(repository, cx=0.6)
        until(lambda: len(stubs(server)) > 3)
        use(repository, "tiny", first)
        until(lambda: "cannot be served" in caplog.text or answers(server, 0.6))
        until(lambda: answers(server, 0.4))
        until(lambda: len(stubs(server)) == 3)
        assert answers(server, 0.4)
