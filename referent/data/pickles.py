"""Reads pickles of published datasets with an allow-list, since a pickle can call any function."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# the globals that plain rows may use, besides literals, which need none: Python 2 and 3, numpy 1 and 2
ALLOWED = frozenset(
    {
        ("builtins", "set"),
        ("builtins", "frozenset"),
        ("builtins", "bytearray"),
        ("__builtin__", "set"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
    }
)


class PickleError(ValueError):
    """The file is not a pickle of plain rows; the message says what it holds."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise PickleError(f"it names {module}.{name}, which plain rows do not need: convert it to JSON lines")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_pickle(file: Path) -> Any:
    """The file's object, with numpy arrays and scalars as lists and numbers. Raises `PickleError` and OSError."""
    try:
        with file.open("rb") as stream:
            return _plain(_PlainUnpickler(stream, encoding="latin1").load())  # latin1: Python 2's strings and arrays
    except PickleError as error:
        raise PickleError(f"{file.name} is not read: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise PickleError(f"{file.name} is not a readable pickle: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value
