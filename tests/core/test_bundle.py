import json
from pathlib import Path

import pytest

from referent.core.bundle import BundleError, bundle_names, load_bundle, verify_files
from referent.core.spec import ModelSpec
from tests.support.tiny import MODEL_REPOSITORY, TINY_BUCKETS, TINY_IMAGE, TINY_PROMPT, copy_mini


def test_the_committed_files_are_the_published_ones() -> None:
    for name in bundle_names(MODEL_REPOSITORY):
        verify_files(MODEL_REPOSITORY, name)


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    repository = copy_mini(tmp_path / "repository")
    bundle, _ = load_bundle(repository, "mini")
    model = repository / next(file for file in bundle.files if file.endswith("model.onnx"))
    with model.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx is not the file that was published"):
        verify_files(repository, "mini")
    model.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        verify_files(repository, "mini")


def test_unknown_names_and_broken_bundles_give_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no version of 'other'"):
        load_bundle(tmp_path, "other")
    with pytest.raises(BundleError, match="not a model name"):
        load_bundle(tmp_path, "../mini")
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "bundle.json").write_text(json.dumps({"name": "bad"}))
    with pytest.raises(BundleError, match="not a bundle of this release"):
        load_bundle(tmp_path, "bad")


def test_buckets_must_ascend() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        ModelSpec(
            image=TINY_IMAGE, image_tokens=4, box_frame="transformed", prompt=TINY_PROMPT,
            buckets=TINY_BUCKETS[::-1], present_threshold=None,
        )  # fmt: skip
