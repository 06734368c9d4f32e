"""The wheel, in an environment of its own that has its dependencies but no clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from referent import AsyncClient, Client, __version__

reveal_type(__version__)
reveal_type(Client().models())
reveal_type(Client().ground("photo.jpg", ["the queen"]).results[0].expression)

async def ask(client: AsyncClient) -> None:
    reveal_type(await client.models())

Client().ground("photo.jpg", expressions=1)
from referent import Cleint
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "referent", folder / "referent", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder / "dist", folder], check=True)
    [wheel] = (folder / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that the wheel is installed into."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = (folder / "lib").glob("python3.*/site-packages")
    ZipFile(wheel).extractall(packages)
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return folder / "bin" / "python"


def run(*command: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)


def test_it_installs_one_package_which_is_typed(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    [record] = (name for name in names if name.endswith(".dist-info/RECORD"))
    listed = {line.partition(",")[0] for line in ZipFile(wheel).read(record).decode().splitlines()}
    assert listed == set(names)
    assert {name.partition("/")[0] for name in names} == {"referent", Path(record).parts[0]}
    assert {"referent/py.typed", "referent/evaluation/report.html.jinja", "referent/mini/vocabulary.tsv"} <= listed


def test_a_users_program_sees_the_types(python: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "--python-executable", python]
    result = run(*mypy, "program.py", folder=tmp_path)
    notes = [line.partition("note: ")[2] for line in result.stdout.splitlines() if "note: Revealed" in line]
    assert [note.partition('"')[2].strip('"') for note in notes] == [
        "str",
        "list[referent.core.api.ServedModel]",
        "str",
        "list[referent.core.api.ServedModel]",
    ], result.stdout
    errors = [line for line in result.stdout.splitlines() if "error:" in line]
    assert len(errors) == 2, result.stdout
    assert 'Argument "expressions" to "ground" of "Client" has incompatible type "int"' in errors[0]
    assert 'Module "referent" has no attribute "Cleint"' in errors[1]


@pytest.mark.parametrize(
    "arguments",
    [["serve"], ["export", "checkpoint", "--name", "a"], ["bench"], ["bench", "stages", "--help"]],
    ids=["serve", "export", "bench", "a benchmark"],
)
def test_what_a_clone_alone_can_do_says_so(python: Path, tmp_path: Path, arguments: list[str]) -> None:
    for name in ("gateway", "export", "runtime", "benchmarks"):  # others' packages of these names are not ours
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    result = run(python, "-m", "referent", *arguments, folder=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert "runs from a clone of the project" in line
    assert "pip install -e '.[" in line


def test_a_missing_extra_names_the_wheels_file(python: Path, wheel: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['scipy'] = None; from referent.commands.app import app; "
        "app(['evaluate', 'jsonl', '--annotations', 'a', '--predictions', 'p'])"
    )
    result = run(python, "-c", program, folder=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.endswith(f"evaluating needs: pip install '{wheel.name}[evaluate]'")
