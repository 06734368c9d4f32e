"""mini-text: mini's trunk learns to write boxes and points.

    python -m referent.mini.text --base BASE/head --artwork ... --out RUN --steps 3000

One object is answered with its box, several and what begins with "point to" with points, and what is not there with
`none`. The vision tower stays as pre-training made it; the language model is trained as a whole, since an adapter is
too small to learn writing.
"""

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments, set_seed

from referent.core.bundle import TOKENIZER_FILE
from referent.core.frame import Frame
from referent.core.grammar import NONE, BoxGrammar, BoxOrPointsGrammar, Generation, PointGrammar
from referent.core.packing import Bucket
from referent.core.prompts import Prompt, PromptEncoder
from referent.data.expressions import Expression
from referent.mini import shape as mini
from referent.mini.canvas import Scene
from referent.mini.expressions import training_expressions
from referent.mini.icons import Materials
from referent.mini.scenes import CLASSES, SceneKind, training_scene
from referent.mini.validation import add_arguments, load_materials, validation_examples, validator
from referent.modeling.checkpoint import BASE_DIRECTORY, CheckpointSpec, load_checkpoint, save_checkpoint
from referent.modeling.grounder import TextGrounder
from referent.training.encoding import TrainingRow, answer_labels, encode_row, frame_boxes
from referent.training.losses import LossWeights, Objective
from referent.training.optimizer import MuonAndAdamW
from referent.training.trainer import GroundingTrainer, last_complete_checkpoint

TEMPLATE = "<image>{expression}"
# the first token of an answer begins with a space, and so does what the grammar allows
GRAMMAR = BoxOrPointsGrammar(
    box=BoxGrammar(order="xyxy", none=True, lead=" "), points=PointGrammar(decimals=1, none=True, lead=" ")
)
MAX_INSTANCES = 16  # of an expression where a request does not say
POINT_TO = ("point to {}", "point at {}", "points of {}")
POINTED_AT = 0.3  # of the expressions of one object or none, those asked with `POINT_TO`
MIX: dict[SceneKind, float] = {"photo": 0.2, "cut": 0.1, "icons": 0.3, "crowd": 0.1, "alike": 0.15, "rows": 0.15}
MANY: dict[SceneKind, float] = {"many": 1.0}
MANY_EVERY = 4  # batches: a batch of its own, since other rows need not be as long


class RowLimits(NamedTuple):
    """What a row holds, and how many of its tokens belong to answers."""

    row: Bucket
    answers: int


ROOM = RowLimits(Bucket(mini.IMAGE_TOKENS + 368, 8), 320)
ROOM_FOR_MANY = RowLimits(Bucket(mini.IMAGE_TOKENS + 640, 8), 560)  # 30 points take 533


@dataclass(frozen=True)
class AnswerStream(Dataset[TrainingRow]):
    """Map-style dataset: the k-th scene with its expressions and their answers; it depends on the seed, `batch` and k.
    Every `MANY_EVERY`-th batch shows many things of a name, the others scenes of `mix`.

    A row has the tensors of `encode_row` and `answer_labels`.
    """

    materials: Materials
    spec: CheckpointSpec
    encoder: PromptEncoder
    mix: Mapping[SceneKind, float]
    samples: int
    batch: int
    seed: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> TrainingRow:
        rng = random.Random(f"{self.seed}/{index}")
        many = index // self.batch % MANY_EVERY == MANY_EVERY - 1
        scene = training_scene(rng, self.materials, MANY if many else self.mix)
        room = ROOM_FOR_MANY if many else ROOM
        frame = self.spec.frame(scene.image.size)
        suffixes: list[list[int]] = []
        answers: list[list[int]] = []
        size = scene.image.size
        asked = training_expressions(rng, scene.names, scene.boxes, size, CLASSES, room.row.expressions)
        for expression in sorted(asked, key=lambda each: -len(each.targets)):  # the longest answer always has room
            words, text = question_and_answer(rng, scene, expression, frame)
            ids = [*self.encoder.answer(text), mini.SPECIAL_TOKENS.index("</s>")]
            if sum(map(len, answers)) + len(ids) <= room.answers:
                suffixes.append(self.encoder.suffix(words) + ids[:-1])
                answers.append(ids)
        shown = suffixes or [self.encoder.suffix("object")]  # a row is never empty
        row, _ = encode_row(scene.image, shown, [()] * len(suffixes), self.spec, self.encoder, room.row)
        return row | answer_labels(row, answers, room.answers)


def question_and_answer(rng: random.Random, scene: Scene, expression: Expression, frame: Frame) -> tuple[str, str]:
    """An expression in the words that it is asked with, and what the model is to write; points go from left to
    right."""
    boxes = [scene.boxes[target] for target in expression.targets]
    words = expression.text
    if len(boxes) > 1 or rng.random() < POINTED_AT:
        if len(boxes) < 2 or rng.random() < 0.5:
            words = rng.choice(POINT_TO).format(words)
        centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]
        points = frame.points_from_image(np.array(sorted(centres), np.float64).reshape(-1, 2))
        return words, GRAMMAR.points.write(points.tolist(), words)
    return words, GRAMMAR.box.write(frame_boxes(boxes, frame)[0].tolist()) if boxes else f"{GRAMMAR.box.lead}{NONE}"


def text_spec(base: CheckpointSpec) -> CheckpointSpec:
    """mini-text before any evaluation, from the spec of the base."""
    prompt = Prompt(**base.prompt.model_dump() | {"template": TEMPLATE, "loc_token_id": None})
    generation = Generation(
        grammar=GRAMMAR, eos_token_id=mini.SPECIAL_TOKENS.index("</s>"), max_instances=MAX_INSTANCES
    )
    return CheckpointSpec(
        **base.model_dump()
        | {
            "kind": "generator", "prompt": prompt, "generation": generation, "has_scores": False,
            "present_threshold": None, "evaluation": {}, "base": BASE_DIRECTORY,
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--base", type=Path, required=True, help="checkpoint of referent.mini.pretrain")
    parser.add_argument("--eval-steps", type=int, default=500)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    set_seed(arguments.seed)
    materials = load_materials(arguments, "train")
    model, base = load_checkpoint(arguments.base, trainable=True)
    model.box_head = None
    model.base.model.vision_tower.requires_grad_(False)
    spec = text_spec(base)
    encoder = PromptEncoder(spec.prompt, arguments.base / TOKENIZER_FILE, spec.image_tokens)
    objective = Objective(model, LossWeights())
    trainer = GroundingTrainer(
        objective,
        AnswerStream(
            materials, spec, encoder, MIX, arguments.steps * arguments.batch, arguments.batch, arguments.seed
        ),
        validator(TextGrounder(model, spec, encoder), validation_examples(arguments)),
        optimizers=(MuonAndAdamW(objective, arguments.learning_rate, 0.05), None),
        args=TrainingArguments(
            output_dir=str(arguments.out), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
            max_grad_norm=1.0, warmup_steps=100, lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.02}, bf16=True, use_cpu=not torch.cuda.is_available(),
            logging_steps=50, report_to="tensorboard", save_steps=250, save_total_limit=2, eval_strategy="steps",
            eval_steps=arguments.eval_steps, metric_for_best_model="mean_iou", dataloader_num_workers=arguments.workers,
            dataloader_prefetch_factor=4, dataloader_persistent_workers=True, remove_unused_columns=False,
            label_names=["labels"], seed=arguments.seed,
        ),
    )  # fmt: skip
    objective.compile_steps()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(arguments.out))
    save_checkpoint(arguments.out / "checkpoint", model, spec, arguments.base / TOKENIZER_FILE)


if __name__ == "__main__":
    main()
