"""Where tritonserver comes from."""

from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize("has_library", [True, False], ids=["shared", "static"])
def test_stub_loads_the_interpreters_own_library_where_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_library: bool
) -> None:
    """The wheel's stub for Python 3.13 names a library that the wheel brings, of one of its first releases."""
    values = {"INSTSONAME": "libpython3.13.so.1.0", "LIBDIR": str(tmp_path)}
    monkeypatch.setattr(distribution.sysconfig, "get_config_var", values.get)
    if has_library:
        (tmp_path / values["INSTSONAME"]).touch()
    wheel = find_distribution()
    monkeypatch.setattr(distribution.sys, "version_info", SimpleNamespace(major=3, minor=13))
    stub = wheel.assemble_backends(tmp_path / "assembled") / "python" / "triton_python_backend_stub"
    monkeypatch.undo()
    assert (b"\0libpython3-" in stub.read_bytes()) != has_library


def test_failed_installation_leaves_nothing_and_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "WHEEL", str(tmp_path / "missing.whl"))
    monkeypatch.setenv("REFERENT_TRITON_DIR", str(tmp_path / "cache" / "tritonserver"))
    with pytest.raises(RuntimeError, match="install it yourself: pip install --no-deps --target"):
        find_distribution()
    assert not list((tmp_path / "cache").iterdir())
