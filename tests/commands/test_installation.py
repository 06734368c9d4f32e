"""Each extra has what its part imports. No text says to install the project by a name that belongs to another project
in a registry."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.sources import ROOT, modules

BY_NAME = re.compile(
    r"""pip3?\s+install\s+(?:-{1,2}[\w-]+(?:[ =]\S+)?\s+)*['"]?referent(?:[-_.]grounding)?(?![\w./-])"""
)


@pytest.mark.parametrize(
    ("text", "by_name"),
    [
        ("pip install referent", True),
        ("pip install 'referent[train]'", True),
        ('pip install --upgrade "referent-grounding[train]"', True),
        ("python -m pip install -U referent_grounding", True),
        ("pip install -e '.[train]'", False),
        ("pip install 'referent_grounding-0.1.0-py3-none-any.whl[train]'", False),
        ("pip install ./dist/referent_grounding-0.1.0-py3-none-any.whl", False),
        ("pip install bitsandbytes", False),
    ],
)
def test_what_counts_as_by_name(text: str, by_name: bool) -> None:
    assert bool(BY_NAME.search(text)) == by_name


def test_the_clone_or_a_wheel_is_what_is_installed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = {
        name: (ROOT / name).read_bytes().decode(errors="replace")
        for name in listed.split("\0")
        if name and name != str(Path(__file__).relative_to(ROOT)) and (ROOT / name).is_file()
    }
    assert "README.md" in texts
    assert [name for name, text in texts.items() if BY_NAME.search(text)] == []


# An extra -> the packages of ours that it is for; what other extras bring is installed here, and hidden from them
PARTS = {
    "": ("referent.core", "referent.kinds", "referent.client", "referent.commands"),
    "triton": ("referent.triton",),
    "gateway": ("gateway",),
    "local": ("runtime", "referent.generation"),
    "export": ("export",),
    "evaluate": ("referent.evaluation", "referent.data"),
    "train": ("referent.modeling", "referent.training", "referent.mini"),
}
PROGRAM = """
import importlib, sys
from importlib.machinery import PathFinder
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
for name in {names}:
    importlib.import_module(name)
"""


def distributions(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """What is installed with this one, by normalised names: its requirements and theirs."""
    found, new = set[tuple[str, frozenset[str]]](), {(canonicalize_name(name), extras)}
    while new:
        found |= new
        new = {each for known in new for each in required(*known)} - found
    return {name for name, _ in found}


def required(name: str, extras: frozenset[str]) -> set[tuple[str, frozenset[str]]]:
    try:
        wanted = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:  # of another platform
        return set()
    return {
        (canonicalize_name(requirement.name), frozenset(requirement.extras))
        for requirement in wanted
        if not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""})
    }


@pytest.mark.parametrize("extra", PARTS)
def test_an_extra_has_what_its_part_imports(extra: str) -> None:
    installed = distributions("referent-grounding", frozenset({extra} - {""}))
    refused = {
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & installed
    }
    names = [
        ".".join(module.file.with_suffix("").parts).removesuffix(".__init__")
        for module in modules()
        if module.package in PARTS[extra] and module.file.name not in ("__main__.py", "model.py")
    ]
    assert names
    program = PROGRAM.format(refused=refused, names=names)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
