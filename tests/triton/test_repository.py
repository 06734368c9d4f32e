"""The command that makes a private repository of one version."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from export.versions import use
from referent.core.bundle import BundleError, load_bundle
from referent.triton import repository as layout
from referent.triton.repository import Placement, named_digest, read_release
from referent.triton.repository import build as make_private
from tests.support.commands import run_main
from tests.support.releases import publish_tiny


def build(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_main(layout.main, *arguments)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", ModelInstanceGroup.KIND_CPU), ("gpu", ModelInstanceGroup.KIND_GPU)]
)
def test_one_version_is_linked_and_its_device_written(repository: Path, tmp_path: Path, device: str, kind: int) -> None:
    _, digest = publish_tiny(repository)
    publish_tiny(repository)
    private = tmp_path / "private" / "models"
    done = build(repository, "tiny", "--digest", digest, "--device", device, "--to", private)
    assert (done.returncode, f"tiny version 1, {digest}: 7 files are as published" in done.stdout) == (0, True)
    models = sorted(folder.name for folder in private.iterdir())
    assert models == ["tiny", "tiny_box_head", "tiny_language_model", "tiny_vision_encoder"]
    for model in models:
        assert (private / model / "1").resolve() == repository / model / "1"
        config = text_format.Parse((private / model / "config.pbtxt").read_text(), ModelConfig())
        assert [group.kind for group in config.instance_group] == ([] if model == "tiny" else [kind])
        assert list(config.version_policy.specific.versions) == [1]


def part_of(private: Path, model: str = "tiny_language_model") -> ModelConfig:
    return text_format.Parse((private / model / "config.pbtxt").read_text(), ModelConfig())


def test_one_setting_says_whether_latency_or_throughput_counts(repository: Path, tmp_path: Path) -> None:
    publish_tiny(repository)
    places = repository, "tiny", "--device", "cpu", "--to"
    assert build(*places, tmp_path / "alone").returncode == 0
    assert build(*places, tmp_path / "busy", "--mode", "throughput").returncode == 0
    alone, busy = (part_of(tmp_path / name) for name in ("alone", "busy"))
    assert (alone.instance_group[0].count, "intra_op_thread_count" in alone.parameters) == (1, False)
    assert 1 <= busy.instance_group[0].count <= len(os.sched_getaffinity(0))
    assert busy.parameters["intra_op_thread_count"].string_value == "1"


def test_a_containers_quota_limits_the_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(layout, "CPU_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    for said, count in (("max 100000\n", 64), ("400000 100000\n", 4), ("50000 100000\n", 1)):
        quota.write_text(said)
        config = ModelConfig(name="part", dynamic_batching={})
        Placement("cpu", "throughput").place(config)
        assert config.instance_group[0].count == count


def test_the_number_of_instances_can_be_given(repository: Path, tmp_path: Path) -> None:
    publish_tiny(repository)
    places = repository, "tiny", "--device", "cpu", "--to", tmp_path / "busy", "--mode"
    assert build(*places, "throughput", "--instances", 3).returncode == 0
    assert part_of(tmp_path / "busy").instance_group[0].count == 3
    for mode, count, said in (("latency", 3, "leave --instances out"), ("throughput", 0, "give 1 or more")):
        refused = build(*places, mode, "--instances", count)
        assert (refused.returncode, said in refused.stderr) == (1, True)


def test_a_gpu_is_warmed_up_with_the_largest_batch_and_its_memory_limited(repository: Path, tmp_path: Path) -> None:
    publish_tiny(repository)
    assert build(repository, "tiny", "--device", "cpu", "--to", tmp_path / "cpu").returncode == 0
    limited = "--device", "gpu", "--gpu-memory-gb", "2.5"
    assert build(repository, "tiny", *limited, "--to", tmp_path / "gpu").returncode == 0
    cpu, gpu = (part_of(tmp_path / name) for name in ("cpu", "gpu"))
    assert {warmup.batch_size for warmup in cpu.model_warmup} == {1}
    assert max(warmup.batch_size for warmup in gpu.model_warmup) == gpu.max_batch_size > 1
    assert gpu.parameters["gpu_mem_limit"].string_value == "2500000000"
    assert "gpu_mem_limit" not in cpu.parameters


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "gpu", "--mode", "throughput"], "mode 'throughput' is for CPUs"),
        (["--device", "cpu", "--gpu-memory-gb", "4"], "a limit of GPU memory is for GPUs"),
        (["--device", "gpu", "--gpu-memory-gb", "0"], "--gpu-memory-gb is 0: give more than 0"),
        (["--device", "gpu", "--gpu-memory-gb", "nan"], "--gpu-memory-gb is nan: give more than 0"),
    ],
    ids=["mode", "memory of no GPU", "no memory", "no number"],
)
def test_settings_that_exclude_each_other_are_named(
    repository: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    publish_tiny(repository)
    done = build(repository, "tiny", *arguments, "--to", tmp_path / "models")
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_another_version_takes_the_place_of_the_one_before(repository: Path, tmp_path: Path) -> None:
    private = tmp_path / "models"
    for version in ("1", "2"):
        publish_tiny(repository)
        assert build(repository, "tiny", "--device", "cpu", "--to", private).returncode == 0  # the named one
        assert (private / "tiny" / version).exists()
    assert len(list(tmp_path.glob(".models~*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--digest", "sha256:0"], "no version of 'tiny' in"),
        (["other"], "other/config.pbtxt is not a config that can be read"),
        (["../tiny"], "not a model name"),
    ],
    ids=["digest", "name", "path"],
)
def test_what_cannot_be_served_is_said_in_a_line(
    repository: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    publish_tiny(repository)
    done = build(repository, *arguments, "--device", "cpu", "--to", tmp_path / "models")
    assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (1, 1, True)
    assert not (tmp_path / "models").exists()


def test_folder_in_the_links_place_is_left_alone(repository: Path, tmp_path: Path) -> None:
    publish_tiny(repository)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    done = build(repository, "tiny", "--device", "cpu", "--to", tmp_path / "models")
    assert (done.returncode, "models" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert (tmp_path / "models" / "mine").exists()


@pytest.fixture
def sound(repository: Path) -> Callable[[Path], None]:
    """Checks that the version that was published first is still served, and within a minute."""
    _, digest = publish_tiny(repository)

    def check(private: Path) -> None:
        words = ["tiny", "--digest", digest, "--device", "cpu", "--to", str(private)]
        program = [sys.executable, "-m", "referent.triton.repository", str(repository), *words]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")

    return check


ODD = {
    "a pipe as bundle": lambda folder: os.mkfifo(folder / "bundle.json"),
    "a device as bundle": lambda folder: (folder / "bundle.json").symlink_to("/dev/zero"),
    "a huge bundle": lambda folder: os.truncate(touched(folder / "bundle.json"), 2**40),
    "a folder as bundle": lambda folder: (folder / "bundle.json").mkdir(),
}


def touched(file: Path) -> Path:
    file.touch()
    return file


@pytest.mark.parametrize("folder", ["tiny/2", "other/1"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_file_beside_a_sound_version_holds_nothing_up(
    repository: Path, tmp_path: Path, sound: Callable[[Path], None], folder: str, odd: str
) -> None:
    (repository / folder).mkdir(parents=True)
    ODD[odd](repository / folder)
    sound(tmp_path / "models")
    with pytest.raises(BundleError):
        load_bundle(repository, *folder.split("/"))


def test_copied_folder_is_not_taken_for_the_version(
    repository: Path, tmp_path: Path, sound: Callable[[Path], None]
) -> None:
    for number in ("2", "3"):
        shutil.copytree(repository / "tiny/1", repository / "tiny" / number)
    sound(tmp_path / "models")
    assert (tmp_path / "models/tiny/1").exists()
    assert use(repository, "tiny", "sha256:") == named_digest(repository, "tiny")


@pytest.mark.parametrize("file", ["tiny/config.pbtxt", "tiny/1/config.pbtxt", "tiny_box_head/1/config.pbtxt"])
def test_pipe_in_place_of_a_config_is_refused(repository: Path, tmp_path: Path, file: str) -> None:
    publish_tiny(repository)
    (repository / file).unlink()
    os.mkfifo(repository / file)
    with pytest.raises(BundleError, match=r"config.pbtxt"):
        read_release(repository, "tiny")


def test_huge_file_is_refused_before_it_is_read(repository: Path) -> None:
    bundle, _ = publish_tiny(repository)
    os.truncate(repository / "tiny_box_head/1/model.onnx", 2**40)
    with pytest.raises(
        BundleError, match=f"{2**40} bytes instead of {bundle.files['tiny_box_head/1/model.onnx'].bytes}"
    ):
        read_release(repository, "tiny")


@pytest.mark.parametrize("beside", ["tiny-b", "tiny.b", "tiny-b-c"])
def test_private_repositories_beside_one_another_leave_each_other_alone(
    repository: Path, tmp_path: Path, beside: str
) -> None:
    publish_tiny(repository)
    for _ in range(2):
        for name in (beside, "tiny"):
            make_private(repository, "tiny", "", tmp_path / "private" / name, Placement("cpu"))
    for name in (beside, "tiny"):
        assert (tmp_path / "private" / name / "tiny/1/bundle.json").is_file()


def test_private_repository_is_whole_when_several_make_it_at_once(repository: Path, tmp_path: Path) -> None:
    publish_tiny(repository)
    private = tmp_path / "models"
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            made = [pool.submit(make_private, repository, "tiny", "", private, Placement("cpu")) for _ in range(4)]
            assert {each.result().bundle.version for each in made} == {"1"}
            parts = {folder.name for folder in private.iterdir()}
            assert parts == {"tiny", "tiny_box_head", "tiny_language_model", "tiny_vision_encoder"}
            assert all((private / part / "config.pbtxt").is_file() for part in parts)
    assert len(list(tmp_path.glob(".models~*"))) == 1


def test_version_that_may_not_be_read_is_named(repository: Path) -> None:
    _, digest = publish_tiny(repository)
    (repository / "tiny/1/bundle.json").unlink()
    (repository / "tiny/1/bundle.json").mkdir()
    with pytest.raises(BundleError, match="1 can't be read"):
        read_release(repository, "tiny", digest)
