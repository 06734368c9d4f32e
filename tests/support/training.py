"""Scenes of coloured squares, as a training stream; and a folder of records with a base, as a whole run needs."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
from PIL import Image

from referent.core.packing import Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.core.transform import ImageTransform
from referent.data.records import Record, write_records
from referent.mini.artwork import TRAIN_STYLES
from referent.mini.canvas import SIDE
from referent.mini.icons import Materials
from referent.mini.stream import SceneStream, Stage
from referent.training.recipe import Recipe
from tests.support.tiny import TINY_BUCKETS, TINY_PROMPT

NAMES = ["cup", "plate", "red", "blue"]
GRID = 12


@pytest.fixture(scope="module")
def materials() -> Materials:
    """Icons of one colour each."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    icons = {name: np.full((40, 40, 4), (*colour, 255), np.uint8) for name, colour in zip(NAMES, colours, strict=True)}
    return Materials(dict.fromkeys(TRAIN_STYLES, icons), [], [])


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return ModelSpec(
        image=ImageTransform(size=SIDE), image_tokens=GRID**2, box_frame="transformed", prompt=TINY_PROMPT,
        buckets=TINY_BUCKETS, present_threshold=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stream(materials: Materials, spec: ModelSpec, tokenizer_file: Path) -> SceneStream:
    encoder = PromptEncoder(TINY_PROMPT, tokenizer_file, spec.image_tokens)
    stages = [Stage(4, {"crowd": 1.0}), Stage(4, {"icons": 1.0})]
    return SceneStream(materials, spec, encoder, NAMES, stages, Bucket(GRID**2 + 80, 6), seed=1)


@pytest.fixture(scope="session")
def records_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and val.jsonl: a red square somewhere on blue, sought by two names and an absent one."""
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        records = []
        for index in range(count):
            pixels = np.full((30, 40, 3), (0, 0, 255), np.uint8)
            left, top = (int(v) for v in rng.integers(0, 20, 2))
            pixels[top : top + 10, left : left + 10] = (255, 0, 0)
            name = f"{split}-{index}.png"
            Image.fromarray(pixels).save(folder / name)
            box = (left, top, left + 10, top + 10)
            for expression, where in (("red cup", box), ("the cup", box), ("green plate", None)):
                records.append(
                    Record(id=f"{name}/{expression}", image=name, width=40, height=30, expression=expression,
                           box_xyxy=where, split=split)
                )  # fmt: skip
        write_records(folder / f"{split}.jsonl", records)
    return folder


@pytest.fixture(scope="session")
def base(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without its adapter."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    copytree(tiny_checkpoint, folder, ignore=ignore_patterns("adapter", "base"))
    return folder


@pytest.fixture
def make_recipe(base: Path, records_folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe of a few steps on the folder of records."""

    def make(mode: str, **settings: Any) -> Recipe:
        given = {"base": base, "data": records_folder, "images": records_folder, "out": tmp_path / "run", "steps": 2}
        quick = {"batch": 2, "row_expressions": 4, "workers": 0, "logging_steps": 1, "learning_rate": 1e-2}
        return Recipe(mode=mode, **given | quick | settings)

    return make
