"""Where an export keeps the results of its phases: a stopped export continues after the last complete phase."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from export.parity import Case
from export.publish import staging
from referent.core.files import atomic
from referent.modeling.checkpoint import CheckpointError, load_checkpoint_spec

KEY_FILE, PARTIAL, CASES = "export.json", ".partial", ".cases"


class Workplace:
    """A folder whose entries get their names only once they are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, suffix: str, write: Callable[[Path], None]) -> Path:
        """The folder of a step, <folder>/<suffix>; `write` fills it where it is not there yet."""
        folder, partial = self.folder / suffix, self.folder / f"{suffix}{PARTIAL}"
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write(partial)
            partial.rename(folder)
        return folder

    def cases(self, name: str, compute: Callable[[], Sequence[Case]]) -> list[Case]:
        """What PyTorch computed, from <folder>/<name>.cases where it is there."""
        file, partial = self.folder / f"{name}{CASES}", self.folder / f"{name}{CASES}{PARTIAL}"
        if not file.exists():
            torch.save([tuple(case) for case in compute()], partial)
            partial.rename(file)
        return [Case(*fields) for fields in torch.load(file)]


@contextmanager
def workplace(repository: Path, work: Path | None, checkpoint: Path, options: dict[str, object]) -> Iterator[Workplace]:
    """The folder `work`, removed once everything is published, otherwise kept; by default one of
    `staging`, removed in any case. Raises `CheckpointError` if `work` belongs to another export."""
    if work is None:
        with staging(repository) as folder:
            yield Workplace(folder)
        return
    key = {**options, "checkpoint": str(checkpoint.resolve()), "files": _files(checkpoint)}
    key_file = work / KEY_FILE
    if work.exists() and any(work.iterdir()):
        if not key_file.is_file() or json.loads(key_file.read_text()) != key:
            raise CheckpointError(
                f"{work} is not of this checkpoint and these options: name another --work, or remove it"
            )
    else:
        work.mkdir(parents=True, exist_ok=True)
        with atomic(key_file) as temporary:
            temporary.write_text(json.dumps(key, indent=1))
    yield Workplace(work)
    shutil.rmtree(work)


def _files(checkpoint: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file of a checkpoint and its base."""
    base = checkpoint / load_checkpoint_spec(checkpoint).base
    files = sorted({path for folder in (checkpoint, base) for path in folder.rglob("*") if path.is_file()})
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
