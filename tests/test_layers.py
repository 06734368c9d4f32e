"""Imports go one way: docs/architecture.md has the table, and this holds the sources against it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.sources import ROOT, TOPS, imports, modules

PAGE = ROOT / "docs/architecture.md"
SECTION = "## What imports what"
EVERY = "every package"
WITHOUT_TORCH = ("referent.core", "referent.kinds", "referent.triton", "referent.client", "gateway")
HEAVY = ("torch", "transformers", "peft", "onnx", "matplotlib", "scipy")
VERSION = "referent.__version__"  # of the top-level module, which any import of ours runs


class Layer(NamedTuple):
    """A row of the table: what a package may import, ours and others'."""

    ours: frozenset[str]
    others: frozenset[str]


def read_table(text: str) -> dict[str, Layer]:
    section = text.partition(SECTION)[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    cells = [(name.strip("`"), *(frozenset(re.findall("`([^`]+)`", c)) for c in rest)) for name, *rest in rows[2:]]
    return {name: Layer(ours, others) for name, ours, others in cells}


TABLE = read_table(PAGE.read_text())
COMMON = TABLE.pop(EVERY).others


def is_within(name: str, packages: frozenset[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(package: str, tree: ast.Module) -> Iterator[str]:
    """Imports that the package's row does not have, with their lines."""
    layer = TABLE[package]
    for name, line in imports(tree):
        top = name.partition(".")[0]
        if top in TOPS:
            allowed = name in ("referent", VERSION) or is_within(name, layer.ours | {package})
        else:
            allowed = top in sys.stdlib_module_names or is_within(name, layer.others | COMMON)
        if not allowed:
            yield f"{line}: {name}"


def reached(package: str) -> set[str]:
    """The package and all that it may import, directly or not."""
    found, new = set[str](), {package}
    while new:
        found |= new
        new = {name for known in new for name in TABLE[known].ours} - found
    return found


def test_the_table_has_a_row_for_every_package() -> None:
    assert set(TABLE) == {module.package for module in modules()}


def test_imports_go_one_way() -> None:
    order = list(TopologicalSorter({package: layer.ours for package, layer in TABLE.items()}).static_order())
    assert order.index("referent.core") == 0
    importers = {package for package, layer in TABLE.items() if layer.ours & {"gateway", "export", "runtime"}}
    assert importers == {"referent.commands", "benchmarks"}


@pytest.mark.parametrize("package", TABLE)
def test_a_package_imports_what_its_row_has(package: str) -> None:
    found = [
        f"{module.file}:{wrong}"
        for module in modules()
        if module.package == package
        for wrong in violations(package, module.tree)
    ]
    assert not found, f"not in the row of {package} ({PAGE.name}, {SECTION.strip('# ')})"


@pytest.mark.parametrize("package", TABLE)
def test_a_row_has_no_dependency_that_nothing_imports(package: str) -> None:
    names = {name for module in modules() if module.package == package for name, _ in imports(module.tree)}
    assert not {entry for entry in TABLE[package].others if not any(is_within(n, frozenset({entry})) for n in names)}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", ["1: torch"]),
        ("def late():\n    from transformers.models import llava", ["2: transformers.models"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from referent.data.records import Record",
         ["3: referent.data.records"]),
        ("from referent import modeling", ["1: referent.modeling"]),
        ("from referent import Client", ["1: referent.Client"]),
        ("import gateway.app as app, json", ["1: gateway.app"]),
        ("from referent import __version__\nimport httpx\nfrom referent.core.boxes import Box", []),
    ],
    ids=lambda value: value.splitlines()[-1].strip() if isinstance(value, str) else None,
)  # fmt: skip
def test_an_import_is_seen_wherever_it_stands(source: str, found: list[str]) -> None:
    assert list(violations("referent.core", ast.parse(source))) == found


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_serving_and_asking_load_no_torch(package: str) -> None:
    assert not {name for known in reached(package) for name in TABLE[known].others} & set(HEAVY)
    names = [
        ".".join(module.file.with_suffix("").parts).removesuffix(".__init__")
        for module in modules()
        if module.package == package and module.file.name != "__main__.py"
    ]
    program = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    program += f"print(*sorted(set({HEAVY}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_no_test_module_imports_another() -> None:
    tests = Path(__file__).parent
    for file in tests.rglob("*.py"):
        names = [imported.name for imported in imports(ast.parse(file.read_text()))]
        assert not [name for name in names if name.startswith("tests.") and ".test_" in name], file
