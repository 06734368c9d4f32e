"""How this copy of the project was installed, from a clone or as a wheel, and which extras a command needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from referent import __version__
from referent.commands.terminal import failure

_ROOT = Path(__file__).parents[2]
CLONE = _ROOT if (_ROOT / "pyproject.toml").is_file() else None  # None: installed as a wheel
WHEEL = f"referent_grounding-{__version__}-py3-none-any.whl"
CLONE_ONLY = {"bench", "export", "gateway", "local"}  # extras for packages that a wheel does not contain


def install_command(*extras: str) -> str:
    """The command that installs these extras of the project."""
    names = f"[{','.join(extras)}]" if extras else ""
    if CLONE or CLONE_ONLY & set(extras):
        return f"pip install -e '.{names}' in {CLONE or 'a clone of the project'}"
    return f"pip install '{WHEEL}{names}'"


@contextmanager
def needs(doing: str, *extras: str) -> Iterator[None]:
    """Around a command that imports packages of these extras; if one is missing, the command ends with one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise failure(f"{error}; {doing} needs: {install_command(*extras)}") from error


@contextmanager
def needs_clone(doing: str, *extras: str) -> Iterator[Path]:
    """As `needs`, for a command that imports gateway, export, runtime or benchmarks, which only a clone has.

    Yields the clone's folder.
    """
    if CLONE is None:
        raise failure(f"{doing} runs from a clone of the project, not from a wheel: {install_command(*extras)}")
    if str(CLONE) not in sys.path:
        sys.path.insert(0, str(CLONE))
    with needs(doing, *extras):
        yield CLONE
