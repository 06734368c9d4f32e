"""An experiment with visual position prompts in front of mini: what it starts from. `runs/vpp.sh` is the whole of it.

    python -m referent.mini.prompted detector --artwork ... --out RUN  # DETR on every object's box and name
    python -m referent.mini.prompted assemble --base CHECKPOINT --detector RUN --out FOLDER   # one base for each cell

The detector is `referent.modeling.vpp.Detector`, trained as DETR is; a linear layer and a box head at every cell of its
encoder, and real batch norms, which are frozen at the end, make it learn in an hour.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments, set_seed
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d, DetrMLPPredictionHead

from referent.core.bundle import TOKENIZER_FILE
from referent.core.frame import Frame
from referent.core.processor import detector_inputs
from referent.mini import shape as mini
from referent.mini.canvas import Scene
from referent.mini.icons import Materials
from referent.mini.pretrain import mini_spec
from referent.mini.scenes import CLASSES, make_scene
from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint, save_checkpoint
from referent.modeling.llava import add_visual_prompts
from referent.modeling.vpp import QUERY_SIZE, STRIDE, VisualPrompts, VisualPromptsShape, draw_axis
from referent.training.encoding import TrainingRow, frame_boxes
from referent.training.losses import overlap
from referent.training.optimizer import MuonAndAdamW
from referent.training.trainer import GroundingTrainer, last_complete_checkpoint

SHAPE = VisualPromptsShape(
    stage_layers=(1, 1, 1, 1), stage_sizes=(64, 128, 192, 256), reduction=2, feed_forward_size=512, layers=2,
    queries=30, detector_size=288,
)  # fmt: skip
DETECTOR_GRID = SHAPE.detector_size // STRIDE
CELLS: dict[str, VisualPromptsShape] = {"global": SHAPE.model_copy(update={"queries": 0}), "both": SHAPE}
UNTRAINED = "both_untrained"  # as both, with a detector that has never seen a box
DETECTOR_FILE = "detector.pt"
WEIGHT_DECAY = 0.05
OBJECTS = 9  # of a scene, at most
HELD_OUT = 300  # scenes that the detector is judged on


def cell_owners(scene: Scene, frame: Frame, grid: int) -> npt.NDArray[np.int64]:
    """(K,) which object, counted from 1, owns the middle of each cell of the square, row by row; 0 background."""
    along = (np.arange(grid) + 0.5) / grid
    x, y = np.floor(frame.points_to_image(np.stack(np.meshgrid(along, along), -1).reshape(-1, 2))).astype(int).T
    height, width = scene.owner.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, scene.owner[y.clip(0, height - 1), x.clip(0, width - 1)], 0).astype(np.int64)


def cell_targets(scene: Scene, frame: Frame, grid: int) -> TrainingRow:
    """patch_class (K,), len(CLASSES) for background, patch_shown (K,) bool: not background, and patch_boxes (K, 4):
    what dense supervision is given."""
    owner = cell_owners(scene, frame, grid)
    classes = np.array([len(CLASSES), *(CLASSES.index(name) for name in scene.names)])
    boxes = np.concatenate([np.full((1, 4), 0.5), frame_boxes(scene.boxes, frame)]).astype(np.float32)
    return {"patch_class": classes[owner], "patch_shown": owner > 0, "patch_boxes": boxes[owner]}


def objects_row(scene: Scene, spec: CheckpointSpec) -> TrainingRow:
    """What `DetectorObjective` needs of a scene: M = OBJECTS, of which `objects` are there."""
    frame = spec.detector_image.frame(scene.image.size)
    classes, boxes = np.zeros(OBJECTS, np.int64), np.zeros((OBJECTS, 4), np.float32)
    classes[: len(scene.names)] = [CLASSES.index(name) for name in scene.names]
    boxes[: len(scene.boxes)] = frame_boxes(scene.boxes, frame)
    row: TrainingRow = {"objects": np.array(len(scene.names)), "object_class": classes, "object_boxes": boxes}
    return row | detector_inputs(spec, scene.image) | cell_targets(scene, frame, DETECTOR_GRID)


@dataclass(frozen=True)
class Scenes(Dataset[TrainingRow]):
    """The k-th scene of icons, which depends on the seed and k alone, with its objects."""

    materials: Materials
    spec: CheckpointSpec
    samples: int
    seed: str

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> TrainingRow:
        scene = make_scene(random.Random(f"{self.seed}/{index}"), self.materials, "icons")
        return objects_row(scene, self.spec)


class DetectorObjective(nn.Module):
    """DETR's loss, after each layer of the decoder, and dense supervision of the encoder."""

    def __init__(self, names: int = len(CLASSES)) -> None:
        super().__init__()
        self.expressions = True  # the trainer's curriculum sets it
        self.prompts = VisualPrompts(mini.IMAGE.size, mini.WIDTH, SHAPE)
        self.prompts.axis.requires_grad_(False)
        self.prompts.projector.requires_grad_(False)
        self.detector = self.prompts.detector
        self.detector.decoder.config.auxiliary_loss = True
        _swap_norms(self.detector, DetrFrozenBatchNorm2d, nn.BatchNorm2d)
        self.name, self.box = nn.Linear(QUERY_SIZE, names + 1), DetrMLPPredictionHead(QUERY_SIZE, QUERY_SIZE, 4, 3)
        self.cell_name = nn.Linear(QUERY_SIZE, names + 1)
        self.cell_box = DetrMLPPredictionHead(QUERY_SIZE, QUERY_SIZE, 4, 3)
        matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
        self.loss = ImageLoss(matcher, names, eos_coef=0.1, losses=["labels", "boxes"])
        self._seen: dict[str, Any] = {}
        for part in ("encoder", "decoder"):
            getattr(self.detector, part).register_forward_hook(lambda _, __, out, part=part: self._see(part, out))

    def _see(self, part: str, outputs: Any) -> None:
        self._seen[part] = outputs

    def read(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Logits (B, Q, C+1) and boxes (B, Q, 4) after the last layer, and of the layers before."""
        self.detector(self.prompts.detector_pixels(batch["detector_image"], batch["detector_frame"]))
        layers = [self._answers(hidden) for hidden in self._seen["decoder"].intermediate_hidden_states]
        return layers[-1] | {"auxiliary_outputs": layers[:-1]}

    def _answers(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.name(hidden).float(), "pred_boxes": self.box(hidden).float().sigmoid()}

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """Returns `loss` and its parts."""
        losses = self.loss(self.read(batch), targets_of(batch))
        weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
        parts = {
            name: sum(weight * value for key, value in losses.items() if key.startswith(name))
            for name, weight in weights.items()
        }
        cells = self._seen["encoder"].last_hidden_state
        objects = batch["patch_shown"]
        parts["patch_class"] = nn.functional.cross_entropy(
            self.cell_name(cells).float()[objects], batch["patch_class"][objects]
        )
        boxes = self.cell_box(cells[objects]).float().sigmoid()
        iou, giou = overlap(boxes, batch["patch_boxes"][objects])
        l1 = (boxes - batch["patch_boxes"][objects]).abs().sum(-1)
        parts["patch_box"] = (2 * l1 + 1 - giou).sum() / max(1, len(boxes))
        return (
            {"loss": torch.stack(list(parts.values())).sum()} | parts | {"iou": iou.detach().sum() / max(1, len(iou))}
        )


def targets_of(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The objects of each image, as DETR's loss takes them."""
    rows = zip(batch["objects"].tolist(), batch["object_class"], batch["object_boxes"], strict=True)
    return [{"class_labels": classes[:count], "boxes": boxes[:count]} for count, classes, boxes in rows]


@torch.inference_mode()
def detector_figures(objective: DetectorObjective, scenes: Scenes) -> dict[str, float]:
    """Of objects of held-out scenes, each with the query that DETR's matching gives it."""
    matched, named = [], []
    for batch in DataLoader(scenes, batch_size=32):
        outputs, targets = objective.read(batch), targets_of(batch)
        found = objective.loss.matcher({k: v for k, v in outputs.items() if k != "auxiliary_outputs"}, targets)
        for row, (queries, objects) in enumerate(found):
            target = targets[row]
            matched.append(overlap(outputs["pred_boxes"][row, queries], target["boxes"][objects])[0])
            named.append(outputs["logits"][row, queries].argmax(-1) == target["class_labels"][objects])
    iou, right = torch.cat(matched), torch.cat(named)
    return {"mean_iou": iou.mean().item(), "recall@0.5": (iou >= 0.5).float().mean().item(),
            "named": right.float().mean().item(), "n": len(iou)}  # fmt: skip


def train_detector(arguments: argparse.Namespace) -> None:
    """DETR from random weights, on the box and the name of every object."""
    out: Path = arguments.out
    spec = add_visual_prompts(mini_spec(), SHAPE)
    objective = DetectorObjective()
    scenes = Scenes(_materials(arguments, "train"), spec, arguments.steps * arguments.batch, str(arguments.seed))
    trainer = GroundingTrainer(
        objective, scenes, dict,
        optimizers=(MuonAndAdamW(objective, arguments.learning_rate, WEIGHT_DECAY), None),
        args=TrainingArguments(
            output_dir=str(out), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
            max_grad_norm=1.0, warmup_steps=50, lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.02}, bf16=True, use_cpu=not torch.cuda.is_available(),
            logging_steps=25, report_to="none", save_steps=200, save_total_limit=2,
            remove_unused_columns=False, label_names=["boxes"], seed=arguments.seed,
        ),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(out))
    objective.eval()
    figures = detector_figures(objective, Scenes(_materials(arguments, "val"), spec, HELD_OUT, "val"))
    _swap_norms(objective.detector, nn.BatchNorm2d, DetrFrozenBatchNorm2d)
    torch.save(objective.detector.state_dict(), out / DETECTOR_FILE)
    (out / "result.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(figures)


def assemble(arguments: argparse.Namespace) -> None:
    """The base with the prompts of each cell in front of it, as a checkpoint to train."""
    for name, shape in (CELLS | {UNTRAINED: SHAPE}).items():
        set_seed(arguments.seed)
        model, spec = load_checkpoint(arguments.base)
        prompts = VisualPrompts(mini.IMAGE.size, mini.WIDTH, shape)
        prompts.axis.prompt.data.copy_(draw_axis(mini.IMAGE.size))
        if name == "both":
            prompts.detector.load_state_dict(torch.load(arguments.detector / DETECTOR_FILE, weights_only=True))
        model.visual_prompts = prompts
        save_checkpoint(arguments.out / name, model, add_visual_prompts(spec, shape), arguments.base / TOKENIZER_FILE)


def _materials(arguments: argparse.Namespace, split: str) -> Materials:
    backgrounds = arguments.backgrounds if split == "train" else None
    return Materials.load(arguments.artwork, backgrounds, arguments.cards, arguments.split, split)


def _swap_norms(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Batch norms of one class become those of another, with the same weights and statistics."""
    for name, child in list(module.named_children()):
        if isinstance(child, old):
            other = new(len(child.weight))
            other.load_state_dict({key: child.state_dict()[key] for key in _statistics()}, strict=False)
            setattr(module, name, other)
        else:
            _swap_norms(child, old, new)


def _statistics() -> Iterator[str]:
    yield from ("weight", "bias", "running_mean", "running_var")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("detector")
    command.set_defaults(run=train_detector)
    for option in ("--artwork", "--backgrounds", "--cards", "--split", "--out"):
        command.add_argument(option, type=Path, required=True)
    command.add_argument("--steps", type=int, required=True)
    command.add_argument("--batch", type=int, default=16)
    command.add_argument("--learning-rate", type=float, default=1e-3)
    command = commands.add_parser("assemble")
    command.set_defaults(run=assemble)
    for option in ("--base", "--detector", "--out"):
        command.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    set_seed(arguments.seed)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
