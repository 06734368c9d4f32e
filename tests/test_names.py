"""A name means one thing: public classes and aliases of types, and modules."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sources import modules

TYPE_NAME = re.compile(r"[A-Z]\w*[a-z]\w*")  # a constant has no small letter, a type variable of one letter no meaning
COMMANDS = "referent.commands"
BACKENDS = ("runtime", "backends")  # Triton itself names the module and the class of each
ONE_MEANING = {
    "__init__": "a package",
    "__main__": "what python -m runs: a line that calls the package's command",
    "coco": "COCO's layout of a data set: read as records, and written of what a batch found",
    "expressions": "generated referring expressions: of labelled photographs, and of mini's scenes",
}


def public_types(tree: ast.Module) -> Iterator[str]:
    """Classes and aliases at the top of a module."""
    for node in tree.body:
        names = [node.name] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if TYPE_NAME.fullmatch(name))


def repeated(homes: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {name: [str(file) for file in files] for name, files in sorted(homes.items()) if len(files) > 1}


def test_no_two_public_types_share_a_name() -> None:
    homes: dict[str, list[Path]] = defaultdict(list)
    for module in modules():
        if module.file.parts[:2] == BACKENDS:
            continue
        for name in public_types(module.tree):
            homes[name].append(module.file)
    assert repeated(homes) == {}


def test_modules_of_one_name_have_one_meaning() -> None:
    """A command is called after what it calls, and a kind of model has one name in every package."""
    homes: dict[str, list[Path]] = defaultdict(list)
    for module in modules():
        if module.file.parts[:2] == BACKENDS:
            continue
        if module.package != COMMANDS or module.file.stem in ONE_MEANING:
            homes[module.file.stem].append(module.file)
    kinds = {module.file.stem for module in modules() if module.package == "referent.kinds"}
    found = repeated(homes)
    assert {name: files for name, files in found.items() if name not in ONE_MEANING.keys() | kinds} == {}
    assert ONE_MEANING.keys() <= found.keys(), "listed for nothing"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("class Picture: ...", ["Picture"]),
        ("Box = tuple[float, float, float, float]", ["Box"]),
        ("Handler: TypeAlias = Callable[[], None]", ["Handler"]),
        ("T = TypeVar('T')\nLIMIT = 3\nclass _Part: ...\ndef parse(): ...", []),
    ],
)
def test_classes_and_aliases_are_types_and_constants_are_not(source: str, names: list[str]) -> None:
    assert list(public_types(ast.parse(source))) == names
