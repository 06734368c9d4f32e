import json
import shutil
import socket
from importlib.metadata import version as installed
from pathlib import Path

import pytest
from typer.testing import CliRunner

from referent.commands import doctor
from referent.commands.app import app

REPOSITORY = Path("model_repository")


def diagnose(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    ports = ["--port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    result = CliRunner().invoke(app, ["doctor", "--json", *ports, *arguments])
    return result.exit_code, {row["subject"]: row for row in json.loads(result.stdout)}


def test_reports_versions_memory_and_models_of_this_machine():
    code, found = diagnose()
    assert code == 0
    assert f"numpy {installed('numpy')}" in found["packages"]["found"]
    assert "GiB free" in found["memory"]["found"]
    assert found["model mini"]["status"] == "ok"


def test_a_port_in_use_fails_and_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, found = diagnose("--port", str(port))
    assert code == 1
    assert found[f"port {port}"]["status"] == "fail"
    assert "--port" in found[f"port {port}"]["remedy"]


def test_a_changed_model_file_fails(tmp_path):
    shutil.copytree(REPOSITORY, tmp_path / "models")
    [weights] = tmp_path.glob("models/mini_box_head/*/model.onnx")
    weights.write_bytes(weights.read_bytes()[:-1])
    code, found = diagnose("--model-repository", str(tmp_path / "models"))
    assert code == 1
    assert str(weights.relative_to(tmp_path / "models")) in found["model mini"]["found"]


def test_an_empty_repository_is_a_warning_with_a_remedy(tmp_path):
    code, found = diagnose("--model-repository", str(tmp_path))
    assert code == 0
    assert "export" in found["models"]["remedy"]


def test_memory_below_the_models_need_fails(monkeypatch):
    monkeypatch.setattr(doctor, "_available_memory", lambda: 2**20)
    code, found = diagnose()
    assert code == 1
    assert found["memory"]["status"] == "fail"


@pytest.mark.parametrize(
    ("asked", "status", "text"),
    [
        (["numpy>=1"], "ok", "numpy"),
        (["no-such-package>=1"], "fail", "not installed: no-such-package"),
        (["numpy>=999"], "fail", ">=999"),
        (['no-such-package; extra == "train"'], "warn", "not installed: no-such-package"),
    ],
    ids=["fine", "missing", "too-old", "missing-extra"],
)
def test_packages_are_held_against_the_projects_own_requirements(monkeypatch, asked, status, text):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: asked)
    checks = [check for check in doctor.examine(REPOSITORY, {}) if check.subject.startswith("packages")]
    assert any(check.status == status and text in check.found for check in checks)


def test_the_table_shows_each_check():
    result = CliRunner().invoke(app, ["doctor", "--port", "0", "--grpc-port", "0", "--metrics-port", "0"])
    assert "model mini" in result.stdout
    assert "Python" in result.stdout
