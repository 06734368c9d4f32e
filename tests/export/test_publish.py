"""Publishing, going back and removing, by files alone."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from export import publish as publishing
from export import versions
from export.publish import STAGING, publish, republish
from referent.core.bundle import BundleError, bundle_names, load_bundle, verify_files
from referent.triton.repository import hold, named_digest, read_config, read_release
from tests.support.commands import run_main
from tests.support.releases import SPEC, publish_tiny
from tests.support.tiny import MODEL_REPOSITORY


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def files(repository: Path) -> set[str]:
    return {str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()}


def test_version_is_whole_in_its_own_folders(repository: Path) -> None:
    bundle, digest = publish_tiny(repository)
    listed = {f"tiny_{step}/1/{file}" for step in ("vision_encoder", "language_model", "box_head")
              for file in ("config.pbtxt", "model.onnx")}  # fmt: skip
    assert bundle.files.keys() == listed | {"tiny/1/tokenizer.json"}
    assert read_release(repository, "tiny", digest).bundle == bundle
    assert named_digest(repository, "tiny") == digest
    assert {Path(file).suffix for file in files(repository) - bundle.files.keys()} == {".pbtxt", ".json"}


def test_shipped_model_is_published_as_all_others() -> None:
    release = read_release(MODEL_REPOSITORY, "mini")
    for part, config in release.parts.items():
        top = read_config(MODEL_REPOSITORY / part / "config.pbtxt")
        assert list(top.version_policy.specific.versions) == [release.bundle.parts[part]]
        top.ClearField("version_policy")
        assert top == config
    assert read_config(MODEL_REPOSITORY / "mini" / "config.pbtxt") == release.ensemble


def test_weights_are_moved_and_read_once(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inodes: list[int] = []
    hashed: list[str] = []
    original = publishing.file_entry

    def entry(file: Path) -> object:
        hashed.append(f"{file.parent.name}/{file.name}")
        return original(file)

    monkeypatch.setattr(publishing, "file_entry", entry)
    publish_tiny(repository, edit=lambda parts: inodes.extend(f.stat().st_ino for f in parts.rglob("*.onnx")))
    assert {file.stat().st_ino for file in repository.rglob("*.onnx")} == set(inodes)
    assert len(hashed) == len(set(hashed)) == 7


def test_nothing_is_named_before_all_is_there(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = publish_tiny(repository)
    seen = []

    def rename(source: Path, target: Path) -> None:
        seen.append(named_digest(repository, "tiny"))
        original(source, target)

    original = os.rename
    monkeypatch.setattr(os, "rename", rename)
    _, second = publish_tiny(repository)
    assert set(seen) == {first}
    assert named_digest(repository, "tiny") == second


def test_publishers_at_the_same_time_get_numbers_of_their_own(repository: Path) -> None:
    publish_tiny(repository)
    found = []

    def again() -> None:
        found.append(republish(repository, "tiny", "1", repository)[0].version)

    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["2", "3", "4", "5"]
    for version in found:
        verify_files(repository, "tiny", version)


@pytest.mark.parametrize("place", [".repository", "repository/"])
def test_a_publisher_that_ends_meanwhile_stops_no_other(tmp_path: Path, place: str) -> None:
    """Its folder is listed, and gone when it is looked at: here it is a link to nothing."""
    publish_tiny(tmp_path / "repository")
    (tmp_path / f"{place}{STAGING}x").symlink_to("nowhere")
    assert publish_tiny(tmp_path / "repository")[0].version == "2"


def test_what_an_older_release_published_gets_todays_layout(repository: Path, tmp_path: Path) -> None:
    old, _ = publish_tiny(tmp_path / "old")
    bundle_file = tmp_path / "old/tiny/1/bundle.json"
    kept = {file: entry for file, entry in old.files.items() if not file.endswith(".pbtxt")}
    bundle_file.write_text(old.model_copy(update={"files": kept}).model_dump_json())
    for part in old.parts:
        (tmp_path / "old" / part / "1/config.pbtxt").unlink()
    ensemble = tmp_path / "old/tiny/config.pbtxt"
    digest = versions.versions(tmp_path / "old", "tiny")["1"]
    ensemble.write_text(ensemble.read_text().replace(named_digest(tmp_path / "old", "tiny"), digest))
    with pytest.raises(BundleError, match="republish tiny"):
        read_release(tmp_path / "old", "tiny")
    new, _ = republish(tmp_path / "old", "tiny", "1", repository)
    assert new == old
    read_release(repository, "tiny")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_main(versions.main, *arguments)


def test_command_lists_and_goes_back(repository: Path) -> None:
    _, first = publish_tiny(repository)
    _, second = publish_tiny(repository)
    (repository / "junk" / "1").mkdir(parents=True)
    (repository / "junk" / "1" / "bundle.json").write_text("{")
    listed = command(repository, "list", "tiny").stdout.splitlines()
    assert [line.split()[:4] for line in listed] == [["*", "tiny", "2", second], ["tiny", "1", first, "0.0"]]
    assert command(repository, "list").returncode == 0
    assert first in command(repository, "use", "tiny", first[:20]).stdout
    assert named_digest(repository, "tiny") == first
    assert second in command(repository, "use", "tiny", 2).stdout
    assert first in command(repository, "use", "tiny", 1).stdout
    assert list(read_config(repository / "tiny_box_head/config.pbtxt").version_policy.specific.versions) == [1]
    for wrong, said in (("sha256:", "2 versions"), ("sha256:0", "0 versions")):
        refused = command(repository, "use", "tiny", wrong)
        assert (refused.returncode, said in refused.stderr) == (1, True)
    shutil.rmtree(repository / "tiny_box_head/2")
    refused = command(repository, "use", "tiny", second)
    assert (refused.returncode, "is missing" in refused.stderr) == (1, True)
    assert named_digest(repository, "tiny") == first


def test_old_versions_are_removed_but_for_those_that_somebody_needs(repository: Path) -> None:
    bundles = [publish_tiny(repository)[0] for _ in range(6)]
    shutil.rmtree(repository / "tiny_box_head/6")  # broken, the newest
    versions.use(repository, "tiny", versions.versions(repository, "tiny")["2"])
    orphan = repository / "tiny_box_head/7"  # of a publication that was killed
    orphan.mkdir()
    killed = repository / f"{STAGING}killed"
    killed.mkdir()
    with hold(repository, bundles[2]):  # a launcher serves version 3
        assert versions.remove(repository, "tiny", keep=2) == ["4", "1"]
        assert list(versions.versions(repository, "tiny")) == ["6", "5", "3", "2"]
    assert not orphan.exists()
    assert not killed.exists()
    for version in ("5", "3", "2"):
        verify_files(repository, "tiny", version)
    assert command(repository, "remove", "tiny", "--keep", 1).stdout == "removed of tiny: 5, 3\n"
    assert not (repository / "tiny_vision_encoder/5").exists()
    (repository / "tiny/config.pbtxt").write_text("{")
    refused = command(repository, "remove", "tiny", "--keep", 0)
    assert (refused.returncode, "not a config that can be read" in refused.stderr) == (1, True)
    assert list(versions.versions(repository, "tiny")) == ["6", "2"]


def test_broken_folders_keep_nobody_from_publishing(repository: Path) -> None:
    publish_tiny(repository, "other")
    (repository / "other/config.pbtxt").write_bytes(b"\xff")
    (repository / "other/1/bundle.json").write_bytes(b"\xff")
    (repository / "tiny" / "9").mkdir(parents=True)
    (repository / "tiny_box_head").write_text("")  # a file where a folder belongs
    with pytest.raises(OSError, match="tiny_box_head"):
        publish_tiny(repository)
    (repository / "tiny_box_head").unlink()
    assert publish_tiny(repository)[0].version == "10"
    read_release(repository, "tiny")


def test_damaged_version_is_not_published_again(repository: Path, tmp_path: Path) -> None:
    """That would make the damage a version whose files are as published."""
    for name, damage in {
        "weights": lambda r: (r / "tiny_box_head/1/model.onnx").write_bytes(b"other"),
        "tokenizer": lambda r: (r / "tiny/1/tokenizer.json").write_text("{}"),
        "missing": lambda r: (r / "tiny_language_model/1/model.onnx").unlink(),
    }.items():
        source = tmp_path / name
        publish_tiny(source)
        for file in source.rglob("*.*"):  # no other version shares it
            if file.is_file():
                file.write_bytes(file.read_bytes())
        damage(source)
        refused = command(source, "republish", "tiny")
        assert (refused.returncode, "Traceback" in refused.stderr) == (1, False), name
        assert list(versions.versions(source, "tiny")) == ["1"]


def test_file_that_is_not_listed_is_not_published_again(repository: Path, tmp_path: Path) -> None:
    publish_tiny(repository)
    (repository / "tiny_box_head/1/notes.txt").write_text("mine")
    republish(repository, "tiny", "1", tmp_path / "target")
    assert not (tmp_path / "target/tiny_box_head/1/notes.txt").exists()


def test_configs_that_a_failed_publication_left_are_written_anew(repository: Path) -> None:
    def leave(parts: Path) -> None:
        for file in parts.glob("*/model.onnx"):
            file.with_name("config.pbtxt").write_text("stale")

    publish_tiny(repository, edit=leave)
    verify_files(repository, "tiny", "1")


def test_graphs_of_a_publication_that_failed_are_kept(repository: Path, tmp_path: Path) -> None:
    def edit(parts: Path) -> None:
        shutil.copytree(parts, tmp_path / "kept")
        (parts / "tokenizer.json").unlink()

    with pytest.raises(FileNotFoundError):
        publish_tiny(repository, edit=edit)
    parts = {suffix: tmp_path / "kept" / suffix for suffix in ("vision_encoder", "language_model", "box_head")}
    options = {"dtype": "fp32", "has_scores": True, "sizes": {"D": 4}, "max_batch_size": 8}
    with pytest.raises(FileNotFoundError):
        publish(repository, "tiny", SPEC, parts, tmp_path / "none.json", **options)
    assert all((folder / "model.onnx").is_file() for folder in parts.values())
    bundle, _ = publish(repository, "tiny", SPEC, parts, tmp_path / "kept" / "tokenizer.json", **options)
    read_release(repository, "tiny")
    assert bundle.version == "1"


def test_model_and_part_of_another_have_no_name_in_common(repository: Path) -> None:
    publish_tiny(repository)
    with pytest.raises(BundleError, match="tiny_box_head is a part of another model"):
        publish_tiny(repository, "tiny_box_head")
    read_release(repository, "tiny")
    other = repository.with_name("other")
    publish_tiny(other, "tiny_box_head")
    with pytest.raises(BundleError, match="tiny_box_head, which tiny needs"):
        publish_tiny(other)
    read_release(other, "tiny_box_head")


def test_what_is_staged_is_not_taken_for_a_model(repository: Path) -> None:
    seen = []
    publish_tiny(repository)
    with publishing.staging(repository) as folder:
        (folder / "tiny").mkdir()
        (folder / "tiny" / "bundle.json").write_text("{}")
        seen = [path.name for path in repository.iterdir()]
        assert bundle_names(repository) == ["tiny"]
    assert not [name for name in seen if name.startswith(".")]


@pytest.mark.parametrize("folder", ["9223372036854775807", "1²", "²", "01", "-1", "1.5"])
def test_folder_that_is_no_version_stops_nothing(repository: Path, folder: str) -> None:
    publish_tiny(repository)
    shutil.copytree(repository / "tiny/1", repository / "tiny" / folder)
    assert publish_tiny(repository)[0].version == "2"
    assert "version 3" in command(repository, "republish", "tiny").stdout
    assert command(repository, "remove", "tiny", "--keep", 1).stdout == "removed of tiny: 2, 1\n"
    assert (repository / "tiny" / folder).exists()
    read_release(repository, "tiny")


def test_version_whose_bundle_is_garbage_stays_and_stops_no_removal(repository: Path) -> None:
    for _ in range(4):
        publish_tiny(repository)
    (repository / "tiny/3/bundle.json").write_text("{")
    assert command(repository, "remove", "tiny", "--keep", 2).stdout == "removed of tiny: 1\n"
    assert (repository / "tiny_box_head/3").exists()
    with pytest.raises(BundleError) as caught:
        load_bundle(repository, "tiny", "3")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["list", "other"], 1, "no version of other"),
        (["remove", "tiny", "--keep", "-1"], 2, "--keep is -1: give 0 or more"),
        (["use", "other", "1"], 1, "0 versions of 'other'"),
        (["republish", "other"], 1, "no version of 'other'"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(repository: Path, words: list[str], status: int, said: str) -> None:
    publish_tiny(repository)
    done = command(repository, *words)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (status, True, False)


def test_repository_that_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    for words in (["list"], ["use", "tiny", "1"], ["remove", "tiny", "--keep", 1], ["republish", "tiny"]):
        done = command(tmp_path / "none", *words)
        assert (done.returncode, str(tmp_path / "none") in done.stderr, "Traceback" in done.stderr) == (1, True, False)
