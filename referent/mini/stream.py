"""Training samples: the k-th scene of a stream, with its expressions, as tensors.

Sample k depends only on the seed and k, so a resumed run sees the same data as an uninterrupted one.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from referent.core.boxes import Box
from referent.core.packing import Bucket
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.data.expressions import area, centre
from referent.mini.canvas import SIDE, Scene
from referent.mini.expressions import training_expressions
from referent.mini.icons import Materials
from referent.mini.scenes import SceneKind, training_scene
from referent.training.encoding import TrainingRow, encode_row, frame_boxes
from referent.training.losses import NO_LABEL

# in which objects of one name are ranked, as expressions do: "leftmost", "second from the right", "smallest"
ORDERS: dict[str, Callable[[Box], float]] = {
    "left": lambda box: centre(box)[0],
    "right": lambda box: -centre(box)[0],
    "top": lambda box: centre(box)[1],
    "bottom": lambda box: -centre(box)[1],
    "largest": lambda box: -math.log(area(box)),
    "smallest": lambda box: math.log(area(box)),
}
RANKS = 6  # first to fifth, and all others
APART, LARGER = 0.05 * SIDE, math.log(1.2)  # below this, which one comes first is hard to see


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
    patch_boxes (K, 4) of the object that is shown; patch_ranks (K, orders) of that object among those of its name."""
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
    no_ranks = np.full((1, len(ORDERS)), NO_LABEL)
    box_of_owner = np.concatenate([np.full((1, 4), 0.5), boxes]).astype(np.float32)
    return sample | {
        "points": points,
        "patch_class": class_of_owner[owner],
        "patch_shown": owner > 0,
        "patch_boxes": box_of_owner[owner],
        "patch_ranks": np.concatenate([no_ranks, _ranks(scene.names, scene.boxes)])[owner],
    }


def _ranks(names: Sequence[str], boxes: Sequence[Box]) -> npt.NDArray[np.int64]:
    """(objects, orders) rank of each among those of its name; NO_LABEL for one alone, or too close to its neighbour."""
    ranks = np.full((len(names), len(ORDERS)), NO_LABEL)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [i for i, other in enumerate(names) if other == name]
        for column, (order, value) in enumerate(ORDERS.items()):
            row = sorted(alike, key=lambda i: value(boxes[i]))
            least = LARGER if order in ("largest", "smallest") else APART
            apart = [True, *(value(boxes[b]) - value(boxes[a]) > least for a, b in pairwise(row)), True]
            for place, index in enumerate(row):
                if apart[place] and apart[place + 1]:
                    ranks[index, column] = min(place, RANKS - 1)
    return ranks


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
