"""Damaged versions are refused, under the launcher and where a plain Triton serves a private repository; what serves
answers every request meanwhile."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from export.versions import use
from referent.core.bundle import Bundle, BundleError
from referent.triton.golden import probe
from referent.triton.protocol import TritonError
from referent.triton.repository import Placement, build
from runtime.launcher import TritonServer
from tests.support.load import Load, gateway, load, until
from tests.support.plain_triton import PlainTriton
from tests.support.releases import deliver, publish_tiny, write_graph

REQUESTS = int(os.environ.get("DAMAGE_REQUESTS", "20"))  # that are answered beside each damaged version
Damage = Callable[[Path, Bundle], object]
Edit = Callable[[Path], object]


def part(repository: Path, bundle: Bundle, step: str, file: str = "model.onnx") -> Path:
    return repository / f"tiny_{step}" / bundle.version / file


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def swap_digest(repository: Path, bundle: Bundle) -> None:
    """The config names a digest that is another's."""
    _, other = publish_tiny(repository, "other")
    file = repository / "tiny" / bundle.version / "config.pbtxt"
    file.write_text(re.sub("sha256:[0-9a-f]+", other, file.read_text()))


def rename_part(repository: Path, bundle: Bundle) -> None:
    """The bundle lists a config that is another model's, with its right hash."""
    publish_tiny(repository, "other")
    (repository / "other_box_head/1/config.pbtxt").replace(part(repository, bundle, "box_head", "config.pbtxt"))


# What the files tell: nobody starts a Triton with it.
TOLD: dict[str, Damage] = {
    "truncated weights": lambda r, b: cut(part(r, b, "box_head")),
    "wrong hash": lambda r, b: flip(part(r, b, "language_model")),
    "missing weights": lambda r, b: part(r, b, "vision_encoder").unlink(),
    "weights are a folder": lambda r, b: (part(r, b, "box_head").unlink(), part(r, b, "box_head").mkdir()),
    "weights never end": lambda r, b: pipe(part(r, b, "box_head")),
    "huge weights": lambda r, b: os.truncate(part(r, b, "language_model"), 2**40),
    "config never ends": lambda r, b: pipe(part(r, b, "box_head", "config.pbtxt")),
    "bundle never ends": lambda r, b: pipe(r / "tiny" / b.version / "bundle.json"),
    "garbage config": lambda r, b: part(r, b, "box_head", "config.pbtxt").write_bytes(b"\xff\x00{"),
    "half-written config": lambda r, b: cut(r / "tiny" / b.version / "config.pbtxt"),
    "missing config": lambda r, b: part(r, b, "language_model", "config.pbtxt").unlink(),
    "config of another model": rename_part,
    "tokenizer of another model": lambda r, b: (r / "tiny" / b.version / "tokenizer.json").write_text("{}"),
    "missing tokenizer": lambda r, b: (r / "tiny" / b.version / "tokenizer.json").unlink(),
    "digest of another version": swap_digest,
    "garbage bundle": lambda r, b: (r / "tiny" / b.version / "bundle.json").write_bytes(b"{"),
    "missing bundle": lambda r, b: (r / "tiny" / b.version / "bundle.json").unlink(),
}


def head(parts: Path, body: str, outputs: str = "float[B, N, 4] boxes, float[B, N] scores") -> None:
    """Another box head."""
    write_graph(parts / "box_head/model.onnx", f"(float[B, N, 4] hidden_states) => ({outputs}) {{ {body} }}")


LAST = "last = Constant <value = int64[1] {2}> ()  sum = ReduceSum <keepdims = 0> (hidden_states, last)"
NAN = "zero = Constant <value = float {0}> ()  none = Div (zero, zero)"
# What only asking tells: its files are as published.
ASKED: dict[str, Edit] = {
    "no model": lambda parts: (parts / "vision_encoder/model.onnx").write_bytes(b"no model"),
    "NaN answers": lambda parts: head(
        parts, f"{LAST} {NAN} boxes = Add (hidden_states, none) scores = Add (sum, none)"
    ),
    "boxes outside": lambda parts: head(
        parts, f"{LAST} two = Constant <value = float {{2}}> () boxes = Max (hidden_states, two) scores = Abs (sum)"
    ),
    "operator that fails": lambda parts: head(
        parts,
        f"""{LAST} far = Constant <value = int64[1] {{99}}> ()
        row = Gather <axis = 2> (hidden_states, far)
        boxes = Add (hidden_states, row) scores = Abs (sum)""",
    ),
    "too few outputs": lambda parts: head(parts, "boxes = Abs (hidden_states)", "float[B, N, 4] boxes"),
    "wrong shape of outputs": lambda parts: head(
        parts, f"{LAST} boxes = Abs (sum) scores = Abs (sum)", "float[B, N] boxes, float[B, N] scores"
    ),
    "wrong type of inputs": lambda parts: write_graph(
        parts / "vision_encoder/model.onnx",
        """(float[B, 8, 8, 3] image) => (float[B, 2, 4] image_features) {
            flat = Flatten <axis = 1> (image)
            shape = Constant <value = int64[3] {-1, 2, 4}> ()
            image_features = Reshape (flat, shape)
        }""",
    ),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("served") / "repository"
    publish_tiny(repository, cx=0.4)
    return repository


@contextmanager
def unharmed(url: str) -> Iterator[Load]:
    """Requests are answered by the version that served before, all of them."""
    with load(url, clients=2) as noted:
        [version] = noted.details
        yield noted
        noted.more_ok(REQUESTS)
    assert noted.details.keys() == {version}
    assert (noted.counts["lost"], noted.counts["retryable"]) == (0, 0)


class TestLauncher:
    """Damaged versions are published one after another."""

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, repository: Path) -> Iterator[str]:
        with (
            TritonServer(repository, load_timeout_s=10, golden_timeout_s=5) as server,
            gateway(repository, server.grpc_url, default_model="tiny") as url,
        ):
            yield url

    @pytest.mark.parametrize("damage", TOLD)
    def test_files_that_are_damaged(
        self, url: str, repository: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with unharmed(url):
            _, digest = deliver(repository, TOLD[damage])
            until(lambda: f"{digest} of tiny cannot be served, the one before stays" in caplog.text)

    @pytest.mark.parametrize("damage", ASKED)
    def test_answers_that_are_wrong(
        self, url: str, repository: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with unharmed(url):
            _, digest = publish_tiny(repository, edit=ASKED[damage])
            until(lambda: f"{digest} of tiny cannot be served, the one before stays" in caplog.text)

    def test_what_names_the_version_is_damaged(
        self, url: str, repository: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = repository / "tiny" / "config.pbtxt"
        content = file.read_bytes()
        for damaged in (b"", b"\xff", content[: len(content) // 2], re.sub(rb"sha256:\w+", b"sha256:0", content)):
            with unharmed(url):
                caplog.clear()
                file.write_bytes(damaged)
                until(lambda: "tiny" in caplog.text)

    def test_sound_version_is_served_after_all(self, url: str, repository: Path) -> None:
        with load(url, clients=2) as noted:
            bundle, _ = publish_tiny(repository, cx=0.4)
            until(lambda: noted.details[f"version {bundle.version}"] >= 5)
        assert (noted.counts["lost"], noted.counts["retryable"]) == (0, 0)


class TestPlainTriton:
    """As compose and Kubernetes: a command makes a repository of one digest, and a plain tritonserver serves it."""

    @pytest.fixture(scope="class")
    @classmethod
    def good(cls, repository: Path) -> str:
        return publish_tiny(repository, cx=0.4)[1]

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, repository: Path, good: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        private = tmp_path_factory.mktemp("private") / "models"
        build(repository, "tiny", good, private, Placement("cpu"))
        with PlainTriton(private, "tiny") as triton:
            triton.wait_until_ready()
            with gateway(repository, triton.grpc_url, default_model="tiny") as url:
                yield url

    @pytest.mark.parametrize("damage", TOLD)
    def test_files_that_are_damaged_start_no_triton(
        self, url: str, repository: Path, tmp_path: Path, damage: str
    ) -> None:
        with unharmed(url):
            _, digest = deliver(repository, TOLD[damage])
            with pytest.raises(BundleError):
                build(repository, "tiny", digest, tmp_path / "models", Placement("cpu"))
            assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize("damage", ASKED)
    def test_triton_with_wrong_answers_is_not_let_in(
        self, url: str, repository: Path, tmp_path: Path, damage: str
    ) -> None:
        """As a pod that is added: its readiness probe asks for the golden inference."""
        with unharmed(url):
            _, digest = publish_tiny(repository, edit=ASKED[damage])
            build(repository, "tiny", digest, tmp_path / "models", Placement("cpu"))
            with PlainTriton(tmp_path / "models", "tiny") as added:
                if added.comes_up():
                    with pytest.raises(TritonError):
                        probe(repository, added.grpc_url, "tiny", 10)

    def test_triton_that_starts_while_a_version_is_published_gets_a_whole_one(
        self, repository: Path, good: str, tmp_path: Path
    ) -> None:
        """The folders of the next version come one by one; in between, a private repository is made."""
        use(repository, "tiny", good)
        before = {"tiny": good}
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-r", repository, copy], check=True)
        bundle, digest = publish_tiny(copy)
        steps = [(copy / p / bundle.version, repository / p / bundle.version) for p in (*bundle.parts, "tiny")]
        steps += [(copy / p / "config.pbtxt", repository / p / "config.pbtxt") for p in (*bundle.parts, "tiny")]
        served = []
        for source, target in steps:
            served.append(build(repository, "tiny", "", tmp_path / "models", Placement("cpu")).digest)
            os.rename(source, target)
        served.append(build(repository, "tiny", "", tmp_path / "models", Placement("cpu")).digest)
        assert served == [before["tiny"]] * len(steps) + [digest]
        assert build(repository, "tiny", good, tmp_path / "models", Placement("cpu")).digest == good


def test_committed_repository_is_served_by_a_plain_tritonserver() -> None:
    """tritonserver --model-repository=model_repository"""
    from tests.support.tiny import MODEL_REPOSITORY

    with PlainTriton(MODEL_REPOSITORY) as triton:
        triton.wait_until_ready()
        probe(MODEL_REPOSITORY, triton.grpc_url, "mini", 10)
        with InferenceServerClient(triton.grpc_url) as client:
            config = client.get_model_config("mini").config
            assert [step.model_name for step in config.ensemble_scheduling.step] == [
                "mini_vision_encoder",
                "mini_language_model",
                "mini_box_head",
            ]
