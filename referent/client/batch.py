"""Many images, resumably: what to ask, and the file of results that remembers what was.

A line of results is JSON: image, expressions and model as asked, and `answer` (as of POST /v1/ground) or `error`.
"""

import csv
import fcntl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from referent.client.http import AsyncClient
from referent.core.api import GroundResponse
from referent.core.files import atomic
from referent.core.sources import is_url

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LISTS = (".txt", ".csv", ".jsonl")
LINE_START = b'{"image":"'  # of a result


class Item(NamedTuple):
    """One question. What makes it the same as another, so that it is asked once."""

    image: str  # path or URL
    expressions: tuple[str, ...]


class Result(BaseModel):
    """A line of the file of results."""

    image: str
    expressions: tuple[str, ...]
    model: str | None = None
    answer: GroundResponse | None = Field(default=None, exclude_if=lambda answer: answer is None)
    error: str | None = Field(default=None, exclude_if=lambda error: error is None)

    @property
    def item(self) -> Item:
        return Item(self.image, self.expressions)


class Row(BaseModel):
    """A line of a .jsonl list."""

    model_config = ConfigDict(extra="forbid")

    image: str
    expressions: tuple[str, ...] = ()


def read_items(source: Path, expressions: Sequence[str]) -> list[Item]:
    """The questions of a folder (its images, in folders below too) or of a list, each once:

    .txt has an image a line, .csv the columns image and, if it likes, expression, .jsonl rows {"image", "expressions"};
    images are URLs, or paths from the folder of the list. `expressions` are for images that have none of their own.
    Raises OSError, and ValueError naming what can't be used.
    """
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        rows: Iterable[Row] = [Row(image=str(file.relative_to(source))) for file in files]
        folder = source
    elif source.suffix in LISTS:
        rows, folder = _read_list(source), source.parent
    else:
        raise ValueError(f"{source} is neither a folder of images nor a list of them: {', '.join(LISTS)}")
    items = []
    for row in rows:
        asked = row.expressions or tuple(expressions)
        if not asked:
            raise ValueError(f"nothing to look for in {row.image}: give expressions after {source}")
        items.append(Item(row.image if is_url(row.image) else str(folder / row.image), asked))
    if not items:
        raise ValueError(f"{source} has no images: give a folder with {', '.join(IMAGE_SUFFIXES)}, or a list")
    return list(dict.fromkeys(items))


def _read_list(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="" if file.suffix == ".csv" else None) as lines:
        if file.suffix == ".csv":
            table = csv.DictReader(lines)
            if "image" not in (table.fieldnames or ()):
                raise ValueError(f"{file} has no column image: its first line names the columns image and expression")
            for cells in table:
                yield Row(image=cells["image"], expressions=tuple(filter(None, [cells.get("expression")])))
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield Row(image=line.strip()) if file.suffix == ".txt" else Row.model_validate_json(line)
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"]))
                raise ValueError(f"{file}:{number}: {where}: {fault['msg']}; a row is {{image, expressions}}") from None


class Results:
    """The file of results of one model (None: the service's default), for one process at a time; made, or found with
    what an earlier one finished.

    Each result is a line, written as it comes. What a killed process left of a last line is removed. With
    `retry_errors`, lines with errors are removed too. Raises OSError, and ValueError for a file that is something else.
    """

    def __init__(self, file: Path, model: str | None = None, retry_errors: bool = False) -> None:
        self.model = model
        self.done: set[Item] = set()
        self.errors = 0  # among them
        self._stream = _open(file)
        try:
            failed = self._read(file)
            if retry_errors and failed:
                self._remove(file, failed)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def write(self, result: Result) -> None:
        self._stream.write(result.model_dump_json().encode() + b"\n")
        self._stream.flush()
        self._note(result)

    def _note(self, result: Result) -> None:
        self.done.add(result.item)
        self.errors += result.error is not None

    def _read(self, file: Path) -> set[int]:
        """Notes what is there; the numbers of the lines that are errors."""
        failed = set()
        whole = 0  # bytes
        self._stream.seek(0)
        for number, line in enumerate(self._stream, 1):
            if not line.endswith(b"\n") and line.startswith(LINE_START[: len(line)]):
                self._stream.truncate(whole)
                break
            whole += len(line)
            try:
                result = Result.model_validate_json(line)
            except ValidationError:
                raise ValueError(f"{file}:{number} is no result of referent batch: give another --out") from None
            if result.model != self.model:
                asked = result.model or "the service's default"
                raise ValueError(f"{file}:{number} was asked of another model, {asked}: give another --out")
            self._note(result)
            if result.error is not None:
                failed.add(number)
        return failed

    def _remove(self, file: Path, failed: set[int]) -> None:
        """Leaves the file whole at any moment."""
        with atomic(file) as temporary, temporary.open("wb") as kept:
            self._stream.seek(0)
            kept.writelines(line for number, line in enumerate(self._stream, 1) if number not in failed)
        self._stream.close()
        self.done.clear()
        self.errors = 0
        self._stream = _open(file)
        self._read(file)


def _open(file: Path) -> BinaryIO:
    stream = file.open("a+b")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise ValueError(f"another process is writing {file}: wait for it, or give another --out") from None
    return stream


async def ask(
    client: AsyncClient, items: Sequence[Item], results: Results, concurrency: int = 8
) -> AsyncIterator[Result]:
    """Asks what is not among the results yet and writes it there, in order; each result once it is written.

    Raises as `AsyncClient.ground_many` does; the results so far are in the file.
    """
    waiting = [item for item in items if item not in results.done]
    asked = iter(waiting)
    async for outcome in client.ground_many(waiting, results.model, concurrency):
        failed = isinstance(outcome, Exception)
        said = {"error": str(outcome)} if failed else {"answer": outcome}
        result = Result(**next(asked)._asdict(), model=results.model, **said)
        results.write(result)
        yield result
