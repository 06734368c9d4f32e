"""Training samples: the k-th scene of a stream, with its expressions, as tensors.

Sample k depends only on the seed and k, so a resumed run sees the same data as an uninterrupted one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from referent.core.packing import Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.mini.expressions import training_expressions
from referent.mini.scenes import Materials, Scene, SceneKind, training_scene
from referent.training.encoding import TrainingRow, encode_row, frame_boxes


class Stage(NamedTuple):
    """A stretch of the stream: how many samples, and the share of each kind of scene."""

    samples: int
    mix: dict[SceneKind, float]


@dataclass(frozen=True)
class SceneStream(Dataset[TrainingRow]):
    """Map-style dataset over the stages; `classes` are the names that dense supervision tells apart."""

    materials: Materials
    spec: ModelSpec
    encoder: PromptEncoder
    classes: Sequence[str]
    stages: Sequence[Stage]
    row: Bucket
    seed: int

    def __len__(self) -> int:
        return sum(stage.samples for stage in self.stages)

    def __getitem__(self, index: int) -> TrainingRow:
        rng = random.Random(f"{self.seed}/{index}")
        scene = training_scene(rng, self.materials, self._stage(index).mix)
        return encode_scene(rng, scene, self.spec, self.encoder, self.classes, self.row)

    def _stage(self, index: int) -> Stage:
        for stage in self.stages:
            if index < stage.samples:
                return stage
            index -= stage.samples
        raise IndexError(index)


def encode_scene(
    rng: random.Random, scene: Scene, spec: ModelSpec, encoder: PromptEncoder, classes: Sequence[str], row: Bucket
) -> TrainingRow:
    """The tensors of `encode_row` and, with K image tokens and N slots: points (N, K) bool: patches that show an
    object; patch_class (K,) index into `classes`, len(classes) for background; patch_shown (K,) bool: not background;
    patch_boxes (K, 4) of the object that is shown."""
    expressions = training_expressions(rng, scene.names, scene.boxes, scene.image.size, classes, row.expressions)
    suffixes = [encoder.suffix(expression.text) for expression in expressions] or [encoder.suffix("object")]
    targets = [[scene.boxes[index] for index in expression.targets] for expression in expressions]
    sample, frame = encode_row(scene.image, suffixes, targets, spec, encoder, row)
    owner = _patch_owner(scene, spec.image.size, round(spec.image_tokens**0.5), len(scene.names), frame.offset)

    points = np.zeros((row.expressions, len(owner)), bool)
    for slot, expression in enumerate(expressions[: int(sample["used"].sum())]):
        points[slot] = np.isin(owner, [target + 1 for target in expression.targets])
    index = {name: i for i, name in enumerate(classes)}
    class_of_owner = np.array([len(classes), *(index[name] for name in scene.names)])
    boxes = frame_boxes(scene.boxes, frame)
    box_of_owner = np.concatenate([np.full((1, 4), 0.5), boxes]).astype(np.float32)
    return sample | {
        "points": points,
        "patch_class": class_of_owner[owner],
        "patch_shown": owner > 0,
        "patch_boxes": box_of_owner[owner],
    }


def _patch_owner(scene: Scene, size: int, grid: int, objects: int, offset: tuple[int, int]) -> npt.NDArray[np.int64]:
    """(K,) the object that owns most of each patch; background counts for less than half of what it covers."""
    height, width = scene.owner.shape  # the longer side is `size`: a scene needs no scaling
    square = np.zeros((size, size), np.uint8)
    square[offset[1] : offset[1] + height, offset[0] : offset[0] + width] = scene.owner
    side = size // grid
    patches = square.reshape(grid, side, grid, side).transpose(0, 2, 1, 3).reshape(grid * grid, side * side)
    counts = np.stack([(patches == k).sum(1) for k in range(objects + 1)], axis=1).astype(np.float32)
    counts[:, 0] *= 0.45
    return counts.argmax(1)
