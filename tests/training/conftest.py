"""Scenes of coloured squares, as a training stream."""

from pathlib import Path

import numpy as np
import pytest

from referent.bundle import ModelSpec
from referent.data.scenes import SIDE, Materials
from referent.images import ImageTransform
from referent.packing import Bucket
from referent.prompts import PromptEncoder
from referent.training.samples import SceneStream, Stage
from tests.tiny import TINY_BUCKETS, TINY_PROMPT

NAMES = ["cup", "plate", "red", "blue"]
GRID = 12


@pytest.fixture(scope="module")
def materials() -> Materials:
    """Icons of one colour each."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    icons = {name: np.full((40, 40, 4), (*colour, 255), np.uint8) for name, colour in zip(NAMES, colours, strict=True)}
    return Materials(dict.fromkeys(("noto", "fluent3d", "fluentflat"), icons), [], [])


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
