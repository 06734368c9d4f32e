"""The project's own sources, as syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TOPS = ("referent", "gateway", "export", "runtime", "benchmarks")


class Module(NamedTuple):
    """A source file; `package` is `referent.X` within the library and the top-level folder elsewhere."""

    file: Path  # relative to the project
    package: str
    tree: ast.Module


class Import(NamedTuple):
    """What an import statement names, with dots, and the line that it stands in."""

    name: str
    line: int


def modules() -> Iterator[Module]:
    """Every Python file outside the tests."""
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            file = path.relative_to(ROOT)
            yield Module(file, package_of(file), ast.parse(path.read_text()))


def package_of(file: Path) -> str:
    """referent/core/boxes.py -> referent.core; referent/__main__.py is the command's, referent/__init__.py itself."""
    top, *rest = file.parts
    if top != "referent":
        return top
    if len(rest) > 1:
        return f"{top}.{rest[0]}"
    return "referent.commands" if rest == ["__main__.py"] else top


def imports(tree: ast.Module) -> Iterator[Import]:
    """Of a whole file: those within functions and those for type checkers alone, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"line {node.lineno}: imports are absolute in this project")
            if node.module == "referent":  # from referent import core
                yield from (Import(f"referent.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield Import(node.module, node.lineno)
