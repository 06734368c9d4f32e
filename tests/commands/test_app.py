"""Common to all commands: help and version without the extras, and the message about a missing extra."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from referent import __version__
from referent.commands.app import app
from tests.support.commands import run

EXTRAS = [
    "accelerate", "fastapi", "gradio", "ijson", "imagehash", "jinja2", "matplotlib", "onnxruntime", "peft", "psutil",
    "pycocotools", "resvg_py", "scipy", "torch", "tqdm", "transformers", "tritonclient", "uvicorn",
]  # fmt: skip
# None in sys.modules is a package that is not installed
WITHOUT = f"import sys; sys.modules |= dict.fromkeys({EXTRAS}); from referent.commands.app import app; "
HELP = """
from typer.testing import CliRunner
for words in {commands}:
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="referent")
    assert result.exit_code == 0 and " ".join(["Usage: referent", *words]) in result.stdout, (words, result)
"""


def commands() -> list[list[str]]:
    """Every command and group of commands, by its words."""

    def below(command: object, words: list[str]) -> list[list[str]]:
        inner = getattr(command, "commands", {}).items()
        return [words, *(found for name, child in inner for found in below(child, [*words, name]))]

    return below(typer.main.get_command(app), [])


def without_extras(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", WITHOUT + program], capture_output=True, text=True)


def test_every_help_and_the_version_need_no_extra() -> None:
    assert ["data", "scenes"] in commands()
    help_of_all = without_extras(HELP.format(commands=commands()))
    assert help_of_all.returncode == 0, help_of_all.stderr
    version = without_extras("app(['--version'])")
    assert (version.returncode, version.stdout) == (0, f"referent {__version__}\n")


MISSING = {
    "serve": ["serve"],
    "export": ["export", "checkpoint", "--name", "a"],
    "train": ["train", "lora", "--base", "b", "--data", "d", "--images", "i", "--out", "o"],
    "sweep": ["sweep", "--base", "b", "--data", "d", "--images", "i", "--out", "o"],
    "prepare": ["data", "prepare", "refcoco", "rows.jsonl", "--out", "o"],
    "evaluate": ["evaluate", "refcoco", "--annotations", "a.jsonl", "--predictions", "p.jsonl"],
    "evaluate-checkpoint": ["evaluate", "jsonl", "--annotations", "a", "--images", "i", "--checkpoint", "c"],
    "compare": ["compare", "run-1", "run-2"],
}


@pytest.mark.parametrize("arguments", MISSING.values(), ids=MISSING)
def test_a_missing_extra_is_told_in_one_line(arguments: list[str]) -> None:
    result = without_extras(f"app({arguments})")
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert "needs: pip install -e '.[" in line
    assert line.endswith(f" in {Path(__file__).parents[2]}")


def test_an_unknown_option_is_told() -> None:
    code, _, errors = run("ground", "a.png", "a", "--nope")
    assert (code, "--nope" in errors) == (2, True)


def test_shells_complete_commands() -> None:
    result = CliRunner().invoke(
        app,
        [],
        prog_name="referent",
        env={"_REFERENT_COMPLETE": "complete_bash", "COMP_WORDS": "referent ba", "COMP_CWORD": "1"},
    )
    assert result.stdout.split() == ["batch"]
