"""Prepares a dataset: annotations of any format -> <split>.jsonl files and stats.json, without broken samples.

Memory grows only by the ids of the rows if the format's reader can read row by row.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from referent.core.files import atomic, md5
from referent.data.downloads import DownloadLimits, download
from referent.data.image_files import decoded_size
from referent.data.readers import READERS, place, read
from referent.data.readers.pixmo import pixmo_downloads
from referent.data.records import Record, Rejected, RowError, read_records, record_line
from referent.data.statistics import Statistics

STATS_FILE = "stats.json"
EXAMPLES = 3  # places that are named for each reason


class PreparationError(ValueError):
    """Nothing was written; the message says why."""


@dataclass(frozen=True)
class PreparationOptions:
    """`split_shares` divides by image and replaces the source's own splits."""

    split_shares: dict[str, float] | None = None
    seed: int = 0
    strict: bool = False
    limit: int | None = None


@dataclass
class _Part:
    """A split being written."""

    stream: BinaryIO
    statistics: Statistics = field(default_factory=Statistics)
    digest: Any = field(default_factory=hashlib.md5)

    def write(self, record: Record) -> None:
        line = record_line(record).encode()
        self.stream.write(line)
        self.digest.update(line)
        self.statistics.add(record)


def fetch_images(format: str, annotations: Sequence[Path], images: Path | None, limits: DownloadLimits) -> Counter[str]:
    """Download what the rows name by URL; returns the number of each outcome. Raises `PreparationError`."""
    if format != "pixmo":
        raise PreparationError(f"--urls is for pixmo: rows of {format} hold no URLs")
    if images is None:
        raise PreparationError("--urls needs a folder to download to: give --images")
    return download((item for file in annotations for item in pixmo_downloads(file)), images, limits)


def prepare(
    format: str, annotations: Sequence[Path], images: Path | None, out: Path, options: PreparationOptions
) -> dict[str, Any]:
    """Write the dataset and return the content of stats.json. Without `images`, image files are not checked.

    All files appear at the end. Raises `PreparationError` if no sample can be used, if a split of an earlier run has
    one of these images or, if strict, at the first sample that can't be used; `AnnotationError` and `OSError` as `read`
    does.
    """
    out.mkdir(parents=True, exist_ok=True)
    rejected: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    parts: dict[str, _Part] = {}
    written: set[str] = set()  # images
    items = ((file, item) for file in annotations for item in read(format, file, images))
    with ExitStack() as files:
        placed = _placed(items, options)
        for record in islice(_sound(format, placed, images, options.strict, rejected, examples), options.limit):
            if record.split not in parts:
                temporary = files.enter_context(atomic(out / f"{record.split}.jsonl"))
                parts[record.split] = _Part(files.enter_context(temporary.open("wb")))
            parts[record.split].write(record)
            written.add(record.image)
        if not parts:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3))
            names = ", ".join(map(str, annotations))
            raise PreparationError(
                f"no sample of {names} can be used: {reasons or f'none was found; is the format {format}?'}; "
                f"{format} expects {READERS[format].expects}"
            )
        for file in sorted(file for file in out.glob("*.jsonl") if file.stem not in parts):
            earlier = (item.image for item in read_records(file) if isinstance(item, Record))
            if shared := next((image for image in earlier if image in written), None):
                raise PreparationError(
                    f"{shared} is also in {file}, of an earlier run: remove that file, give another --out, or give all "
                    "annotations at once"
                )
    stats = {
        "format": format,
        "annotations": {str(file): md5(file) if file.is_file() else None for file in annotations},
        "images_checked": images is not None,
        "split_shares": options.split_shares,
        "seed": options.seed,
        "limit": options.limit,
        "splits": {
            name: {"file": f"{name}.jsonl", "md5": part.digest.hexdigest()} | part.statistics.summary()
            for name, part in sorted(parts.items())
        },
        "rejected": {reason: {"count": count, "such_as": examples[reason]} for reason, count in rejected.most_common()},
    }
    with atomic(out / STATS_FILE) as temporary:
        temporary.write_text(json.dumps(stats, indent=2) + "\n")
    return stats


def _placed(
    items: Iterable[tuple[Path, Record | Rejected]], options: PreparationOptions
) -> Iterator[tuple[Path, Record | Rejected]]:
    """The records with their splits, each id once in a split."""
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for file, item in items:
        if isinstance(item, Rejected):
            yield file, item
            continue
        record = _assigned(item, options)
        repeats = record.id in ids[record.split]
        ids[record.split].add(record.id)
        yield file, Rejected("id of an earlier record: ids must be unique", place(file, record)) if repeats else record


def _sound(
    format: str,
    items: Iterable[tuple[Path, Record | Rejected]],
    images: Path | None,
    strict: bool,
    rejected: Counter[str],
    examples: dict[str, list[str]],
) -> Iterator[Record]:
    """The records that can be used; the others are counted in `rejected`."""
    for file, sample in tqdm(items, desc="prepare", unit="sample"):
        item = _with_image(sample, images, file) if images and isinstance(sample, Record) else sample
        if isinstance(item, Record):
            yield item
            continue
        if strict:
            expected = f"; {format} expects {READERS[format].expects}" if item.is_of_wrong_schema else ""
            raise PreparationError(f"{item.where}: {item.reason}{expected}")
        rejected[item.reason] += 1
        places = examples.setdefault(item.reason, [])
        if len(places) < EXAMPLES:
            places.append(item.where)


def _with_image(record: Record, images: Path, file: Path) -> Record | Rejected:
    try:
        size = decoded_size(images / record.image)
    except RowError as error:
        return Rejected(str(error), place(file, record))
    if size != (record.width, record.height):
        return Rejected("image size differs from the annotation", place(file, record))
    return record


def _assigned(record: Record, options: PreparationOptions) -> Record:
    """The record with its split. It depends on the image's name and the seed, so all records of an image share it."""
    if not options.split_shares:
        return record
    shares = options.split_shares
    split = random.Random(f"{options.seed}/{record.image}").choices(list(shares), list(shares.values()))[0]
    return record.model_copy(update={"split": split})
