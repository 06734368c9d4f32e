"""Sets of scenes written out as a dataset: images/*.jpg, <split>.jsonl and <split>.json (settings and statistics).

The images and records of a set are the same whatever the number of processes; a run that was killed goes on from the
parts that it had finished.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from referent.core.files import atomic, md5
from referent.data.records import Record, Rejected, read_records, write_records
from referent.data.statistics import Statistics
from referent.mini.artwork import EVALUATED_STYLES, UNSEEN_STYLE, VALIDATION_STYLE
from referent.mini.icons import Materials
from referent.mini.scenes import CLASSES, SceneKind
from referent.mini.sets import (
    Example,
    card_photo,
    example_records,
    icon_scene,
    mixed_scene,
    several_card_photo,
    several_scene,
)

IMAGE_FOLDER = "images"
PART = 50  # images: what a killed run may lose, for each process
SetName = Literal["mix", "scenes", "unseen_style", "val_style", "several", "cards", "several_cards"]
PHOTOGRAPHS = ("cards", "several_cards")
STYLES = {"scenes": EVALUATED_STYLES, "unseen_style": (UNSEEN_STYLE,), "val_style": (VALIDATION_STYLE,)}


class SettingsError(ValueError):
    """The folder holds a set made with other settings."""


class SceneSet(BaseModel):
    """`mix` is generated from a mix of kinds, with a share of expressions that mean `several`; `cards` and
    `several_cards` are the photographs themselves, the other sets are of icons."""

    model_config = ConfigDict(frozen=True)

    name: SetName
    count: int = Field(ge=0, description="images")
    seed: str
    mix: dict[SceneKind, float] = Field(default_factory=dict)
    several: float = Field(default=0.0, ge=0, le=1)

    def example(self, materials: Materials, index: int) -> Example:
        """The image of that index, with its expressions."""
        match self.name:
            case "mix":
                return mixed_scene(materials, index, self.seed, self.mix, self.several)
            case "cards":
                return card_photo(materials, index, CLASSES, self.seed)
            case "several_cards":
                return several_card_photo(materials, index, CLASSES, self.seed)
            case "several":
                return several_scene(materials, index, CLASSES, self.seed)
            case _:
                return icon_scene(materials, index, CLASSES, self.seed, STYLES[self.name])


def render(
    materials: Materials, sets: Sequence[SceneSet], split: str, out: Path, sources: dict[str, str], workers: int
) -> dict[str, Any]:
    """Write the sets one after the other into the split; returns what <split>.json holds.

    `sources` tell materials apart, such as hashes of their files. A set that is there already is left as it is; raises
    `SettingsError` if it was made with other settings.
    """
    settings = {"split": split, "sets": [chosen.model_dump() for chosen in sets], "sources": sources}
    report_file, records_file = out / f"{split}.json", out / f"{split}.jsonl"
    if report_file.exists():
        report: dict[str, Any] = json.loads(report_file.read_text())
        if report["settings"] == settings:
            return report
        raise SettingsError(f"{report_file} was made with other settings: remove it or choose another folder")
    (out / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    parts = out / f".parts-{digest}"
    parts.mkdir(exist_ok=True)
    files = _render_parts(materials, sets, split, out / IMAGE_FOLDER, parts, workers)
    statistics = Statistics()
    with atomic(records_file) as temporary:
        write_records(temporary, _counted(files, statistics))
    report = {"settings": settings, "md5": md5(records_file), "statistics": statistics.summary()}
    with atomic(report_file) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(parts)
    return report


def _render_parts(
    materials: Materials, sets: Sequence[SceneSet], split: str, images: Path, parts: Path, workers: int
) -> list[Path]:
    jobs = {
        parts / f"{chosen.name}-{start:08d}.jsonl": (chosen, range(start, min(start + PART, chosen.count)))
        for chosen in sets
        for start in range(0, chosen.count, PART)
    }
    todo = {file: job for file, job in jobs.items() if not file.exists()}
    total = sum(chosen.count for chosen in sets)
    done = total - sum(len(indices) for _, indices in todo.values())
    with (
        ProcessPoolExecutor(workers, initializer=_take, initargs=(materials,)) as pool,
        tqdm(total=total, initial=done, desc=split, unit="image") as progress,
    ):
        running = [pool.submit(_render_part, chosen, at, split, images, file) for file, (chosen, at) in todo.items()]
        try:
            for finished in as_completed(running):
                progress.update(finished.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else it would go through all that is left first
            raise
    return list(jobs)


_materials: Materials  # of a process of the pool


def _take(materials: Materials) -> None:
    global _materials
    _materials = materials
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A process of the pool would wait for work for ever after its parent was killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _render_part(chosen: SceneSet, indices: range, split: str, images: Path, file: Path) -> int:
    """Images first, then the part's records: a part that is there is whole."""
    records: list[Record] = []
    for index in indices:
        example = chosen.example(_materials, index)
        if not example.expressions:
            continue
        if chosen.name in PHOTOGRAPHS:
            photo = _materials.photos[index][1].file
            name = photo.name
            with atomic(images / name) as temporary:
                shutil.copyfile(photo, temporary)
        else:
            name = f"{chosen.name}-{split}-{index:06d}.jpg"
            with atomic(images / name) as temporary:
                example.image.save(temporary, "JPEG", quality=95, subsampling=0)
        records += example_records(example, name, split, chosen.name)
    with atomic(file) as temporary:
        write_records(temporary, records)
    return len(indices)


def _counted(files: Sequence[Path], statistics: Statistics) -> Iterator[Record]:
    for file in files:
        for record in read_records(file):
            if isinstance(record, Rejected):
                raise RuntimeError(f"{record.where}: {record.reason}")
            statistics.add(record)
            yield record
