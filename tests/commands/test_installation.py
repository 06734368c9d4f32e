"""No text says to install the project by a name that belongs to another project in a registry."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
