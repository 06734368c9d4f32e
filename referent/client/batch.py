"""Asks about many images: the questions, and the file of results, from which a stopped run continues.

A line of results is JSON: image, expressions and model as asked, and `answer` (as from POST /v1/ground) or `error`.
"""

import fcntl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from referent.client.http import AsyncClient
from referent.core.api import GroundResponse
from referent.core.files import atomic, files_below, printable
from referent.core.images import IMAGE_SUFFIXES
from referent.core.sources import is_url
from referent.core.text_files import TableRow, fault_of, read_lines, read_table

LISTS = (".txt", ".csv", ".jsonl")
LINE_START = b'{"image":"'  # of a result
# the first is the proper name of the column; another is accepted if it is the only one in the file
IMAGE_COLUMNS = ("image", "images", "image_path", "image_url", "file", "filename", "file_name", "path", "url")
EXPRESSION_COLUMNS = (
    "expression", "expressions", "referring_expression", "text", "prompt", "query", "phrase", "caption",
)  # fmt: skip


Rows = Iterator[tuple[str, tuple[str, ...]]]  # an image, and expressions of its own


class BatchItem(NamedTuple):
    """One question; equal ones are asked once."""

    image: str  # path or URL
    expressions: tuple[str, ...]


class BatchResult(BaseModel):
    """A line of the file of results. Bytes of an image's name that are not UTF-8 are written as \\xNN."""

    image: str
    expressions: tuple[str, ...]
    model: str | None = None
    answer: GroundResponse | None = Field(default=None, exclude_if=lambda answer: answer is None)
    error: str | None = Field(default=None, exclude_if=lambda error: error is None)

    @property
    def item(self) -> BatchItem:
        return BatchItem(self.image, self.expressions)


class BatchRow(BaseModel):
    """A line of a .jsonl list."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1)
    expressions: tuple[str, ...] = ()


def read_items(source: Path, expressions: Sequence[str]) -> list[BatchItem]:
    """The questions of a folder (all images in it and in its subfolders) or of a list, each once.

    A .txt list has an image on each line, .csv a column image and optionally expression, .jsonl rows
    {"image", "expressions"}. Images are URLs, or paths relative to the folder of the list. `expressions` are for images
    that have none of their own. Raises OSError, and ValueError naming what can't be used.
    """
    if source.is_dir():
        rows, folder = _images_of(source), source
    elif source.suffix.lower() in LISTS:
        read = {".txt": _read_names, ".csv": _read_columns, ".jsonl": _read_objects}[source.suffix.lower()]
        rows, folder = read(source), source.parent
    else:
        raise ValueError(f"{source} is neither a folder of images nor a list of them: {', '.join(LISTS)}")
    for text in expressions:
        if text != printable(text):
            raise ValueError(f"the expression {printable(text)} is not UTF-8 text")
    items = []
    for image, own in rows:
        asked = own or tuple(expressions)
        if not asked:
            raise ValueError(f"nothing to look for in {printable(image)}: give expressions after {source}")
        items.append(BatchItem(image if is_url(image) else str(folder / image), asked))
    if not items:
        raise ValueError(f"{source} has no images: give a folder with {', '.join(IMAGE_SUFFIXES)}, or a list")
    return list(dict.fromkeys(items))


def check_outputs(
    source: Path, items: Sequence[BatchItem], files: Mapping[str, Path | None], pictures: Path | None
) -> None:
    """Raises ValueError if an output, by its option, would replace another, the source or an image, or if `pictures`
    would be drawn on, or asked about the next time."""
    read = {Path(item.image).resolve(): "an image" for item in items if not is_url(item.image)}
    read |= {source.resolve(): "the list"}
    for option, file in files.items():
        if file is not None and (other := read.setdefault(file.resolve(), option)) != option:
            raise ValueError(f"{option} {file} is also {other}: name another file")
    if pictures is None:
        return
    folder = pictures.resolve()
    if source.is_dir() and folder.is_relative_to(source.resolve()):
        raise ValueError(f"--pictures {pictures} is in {source}, whose images are asked about: name a folder elsewhere")


def _images_of(folder: Path) -> Rows:
    for file in files_below(folder):
        if file.name.lower().endswith(IMAGE_SUFFIXES) and (file.is_file() or file.is_symlink()):
            yield str(file.relative_to(folder)), ()


def _read_names(file: Path) -> Rows:
    for line in read_lines(file, "surrogateescape"):  # names may have any bytes
        if image := line.strip():
            yield image, ()


def _read_objects(file: Path) -> Rows:
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = BatchRow.model_validate_json(line)
        except ValidationError as error:
            raise ValueError(f"{file}:{number}: {fault_of(error)}; a row is {{image, expressions}}") from None
        yield row.image, row.expressions


def _read_columns(file: Path) -> Rows:
    delimiter, rows = read_table(file)
    heading = next(rows, TableRow(1, [], ""))
    columns = [name.lower() for name in heading.cells]
    image = _place(columns, IMAGE_COLUMNS, f"{file}:{heading.line}")
    expression = _place(columns, EXPRESSION_COLUMNS, f"{file}:{heading.line}")
    if image is None:
        raise ValueError(
            f"{file}:{heading.line}: no column image in {heading.text.strip()[:80]!r}: the first line names the "
            "columns, image and expression"
        )
    for line, cells, text in rows:
        where = f"{file}:{line}"
        if any(cells[len(columns) :]):  # spreadsheets add empty cells
            cells = _rejoined(text, delimiter, len(columns), expression, where)
        cells += [""] * (len(columns) - len(cells))
        if not cells[image]:
            raise ValueError(f"{where}: no image in this row")
        yield cells[image], () if expression is None or not cells[expression] else (cells[expression],)


def _place(columns: Sequence[str], names: Sequence[str], where: str) -> int | None:
    """Index of the column that has one of the names; None if there is none. Raises ValueError if it is ambiguous."""
    found = [name for name in names if name in columns]
    if found[1:] and found[0] != names[0]:
        raise ValueError(f"{where}: {' or '.join(found)}? call the column that is meant {names[0]}")
    if found and columns.count(found[0]) > 1:
        raise ValueError(f"{where}: {columns.count(found[0])} columns are called {found[0]}")
    return columns.index(found[0]) if found else None


def _rejoined(text: str, delimiter: str, count: int, expression: int | None, where: str) -> list[str]:
    """The cells of a row whose last one, the expression, contains the delimiter without quotation marks."""
    together = [cell.strip() for cell in text.rstrip(f"{delimiter}\r\n ").split(delimiter, count - 1)]
    is_part_of_a_name = any(suffix in together[-1].lower() for suffix in IMAGE_SUFFIXES)
    if expression != count - 1 or '"' in text or is_part_of_a_name:
        raise ValueError(
            f"{where}: more cells than the {count} columns: put quotation marks around a cell with {delimiter!r} in it"
        )
    return together


def read_results(file: Path) -> Iterator[BatchResult]:
    """The lines of a file of results that `ResultsFile` has closed. Raises OSError."""
    with file.open("rb") as lines:
        yield from map(BatchResult.model_validate_json, lines)


def without_repeats(results: Iterable[BatchResult]) -> Iterator[BatchResult]:
    """The results, each with the answers to what no earlier one of its image was asked."""
    known: set[tuple[str, str]] = set()
    for result in results:
        if result.answer:
            new = [answer for answer in result.answer.results if (result.image, answer.expression) not in known]
            known |= {(result.image, answer.expression) for answer in new}
            answer = result.answer.model_copy(update={"results": new})
            result = result.model_copy(update={"answer": answer})
        yield result


class ResultsFile:
    """The file of results of one model (None: the service's default), for one process at a time. A file that an earlier
    run left is continued; otherwise it is created.

    Each result is written as a line at once. An incomplete last line of a killed process is removed, and with
    `retry_errors` also the lines with errors. Raises OSError, and ValueError if the file holds anything else.
    """

    def __init__(self, file: Path, model: str | None = None, retry_errors: bool = False) -> None:
        self.model = model
        self.errors = 0
        self._done: set[BatchItem] = set()
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

    def __contains__(self, item: BatchItem) -> bool:
        """Whether it was asked, successfully or not."""
        return BatchItem(printable(item.image), item.expressions) in self._done

    def write(self, result: BatchResult) -> None:
        self._stream.write(result.model_dump_json().encode() + b"\n")
        self._stream.flush()
        self._note(result)

    def _note(self, result: BatchResult) -> None:
        self._done.add(result.item)
        self.errors += result.error is not None

    def _read(self, file: Path) -> set[int]:
        """Reads what is there; returns the numbers of the lines that are errors."""
        failed = set()
        whole = 0  # bytes
        self._stream.seek(0)
        for number, line in enumerate(self._stream, 1):
            if not line.endswith(b"\n") and line.startswith(LINE_START[: len(line)]):
                self._stream.truncate(whole)
                break
            whole += len(line)
            try:
                result = BatchResult.model_validate_json(line)
            except ValidationError:
                raise ValueError(f"{file}:{number} is not a result of referent batch: give another --out") from None
            if result.model != self.model:
                asked = result.model or "the service's default"
                raise ValueError(f"{file}:{number} was asked of another model, {asked}: give another --out")
            self._note(result)
            if result.error is not None:
                failed.add(number)
        return failed

    def _remove(self, file: Path, failed: set[int]) -> None:
        """Replaces the file at once, so that a killed process leaves it whole."""
        with atomic(file) as temporary, temporary.open("wb") as kept:
            self._stream.seek(0)
            kept.writelines(line for number, line in enumerate(self._stream, 1) if number not in failed)
        self._stream.close()
        self._done.clear()
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
    client: AsyncClient,
    items: Sequence[BatchItem],
    results: ResultsFile,
    concurrency: int = 8,
    max_instances: int | None = None,
) -> AsyncIterator[BatchResult]:
    """Asks the questions that are not among the results yet, in order; yields each result once it is written.

    Raises the errors of `AsyncClient.ground_many`; the results so far are in the file.
    """
    waiting = [item for item in items if item not in results]
    asked = iter(waiting)
    async for outcome in client.ground_many(waiting, results.model, concurrency, max_instances=max_instances):
        item = next(asked)
        failed = isinstance(outcome, Exception)
        said = {"error": printable(str(outcome)) or type(outcome).__name__} if failed else {"answer": outcome}
        result = BatchResult(image=printable(item.image), expressions=item.expressions, model=results.model, **said)
        results.write(result)
        yield result
