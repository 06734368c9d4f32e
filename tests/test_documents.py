"""Commands of the documents that no test runs: what they name is there. `tests/system/test_docs.py` runs the others."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.main import get_command

from referent.commands.app import app

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/RESULTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(?P<language>\w*)(?P<mark> no-test)?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# programs of others: what their options are is not ours to know
OTHERS = {"curl", "docker", "echo", "export", "git", "hf", "kubectl", "npm", "openssl", "pip", "until", "IMAGE"}


class Command(NamedTuple):
    """One command of a page, without its variables and comment."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)[:60]}"


def commands() -> Iterator[Command]:
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text()):
            if not fence["mark"]:
                continue  # run, or shown
            for line in fence["text"].replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    yield Command(str(page.relative_to(ROOT)), words)


COMMANDS = list(commands())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_its_language(page: Path) -> None:
    """So that a command is none of the blocks that are shown alone."""
    assert all(fence["language"] for fence in FENCE.finditer(page.read_text()))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_what_a_command_names_is_there(command: Command) -> None:
    program, *words = command.words
    program = program.removeprefix(".venv/bin/")
    if program == "referent":
        _check_referent(words)
    elif program in ("python", "torchrun"):
        while words and words[0] not in ("-m",) and not words[0].endswith(".py"):
            words.pop(0)
        _check_python(words)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= {*targets}
    elif "/" in program:
        assert (ROOT / program).is_file()
    else:
        assert program in OTHERS, f"{program} is no program that the documents use elsewhere"


def _check_referent(words: list[str]) -> None:
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command.name != "app", f"no command {words[:1]}"
    below = [command, *getattr(command, "commands", {}).values()]  # a group may take the words of its first command
    parameters = [parameter for each in below for parameter in each.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known | {"--help"}


def _check_python(words: list[str]) -> None:
    if words[0] == "-m":
        if words[1] == "referent":
            return _check_referent(words[2:])
        spec = find_spec(words[1])
        assert spec, f"no module {words[1]}"
        sources = [Path(spec.origin or "")]
        if spec.submodule_search_locations:
            sources = [*Path(spec.submodule_search_locations[0]).glob("*.py")]
    else:
        sources = [ROOT / words[0]]
    text = "".join(source.read_text() for source in sources)
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        name = option.removeprefix("--").replace("-", "_")
        found = re.search(rf'"{option}"|\b(?:arguments|args)\.{name}\b', text)
        assert found, f"{option} is no option of {words[1]}"
