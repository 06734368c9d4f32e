"""Where tritonserver comes from."""

from pathlib import Path

import pytest

from runtime import distribution
from runtime.distribution import find_distribution


def test_vendor_server_with_its_own_backend_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable, backend = tmp_path / "bin" / "tritonserver", tmp_path / "backends" / "onnxruntime"
    for folder in (executable.parent, backend):
        folder.mkdir(parents=True)
    executable.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(executable.parent))
    monkeypatch.setenv("REFERENT_TRITON_DIR", str(tmp_path / "wheel"))
    monkeypatch.setattr(distribution, "_install", lambda directory: None)
    assert find_distribution().root == tmp_path / "wheel" / "pytriton" / "tritonserver"

    (backend / "libtriton_onnxruntime.so").touch()

    assert find_distribution().root == tmp_path
    backends = find_distribution().assemble_backends(tmp_path / "assembled")
    assert (backends / "onnxruntime").resolve() == backend
    assert (backends / "generator" / "model.py").is_file()


def test_failed_installation_leaves_nothing_and_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "WHEEL", str(tmp_path / "missing.whl"))
    monkeypatch.setenv("REFERENT_TRITON_DIR", str(tmp_path / "cache" / "tritonserver"))
    with pytest.raises(RuntimeError, match="install it yourself: pip install --no-deps --target"):
        find_distribution()
    assert not list((tmp_path / "cache").iterdir())
