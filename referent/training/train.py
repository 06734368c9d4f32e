"""One training run: a base and records in, `OUT/best` and `OUT/last` (checkpoints) out.

OUT also has the run's state (checkpoint-N): the same command continues from there, with the same data as in an
uninterrupted run.
"""

import json
import logging
import math
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from math import isqrt
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from referent.core.bundle import TOKENIZER_FILE
from referent.core.prompts import PromptEncoder
from referent.core.provenance import commit
from referent.modeling.checkpoint import (
    CheckpointSpec,
    load_checkpoint_encoder,
    load_checkpoint_spec,
    save_checkpoint,
)
from referent.modeling.grounder import ReferentGrounder, make_grounder
from referent.modeling.grounding import GroundingModel
from referent.training.bases import open_base, open_paligemma
from referent.training.curves import plot_curves
from referent.training.dialogue_stream import DialogueStream, load_dialogues
from referent.training.encoding import collate, collate_answers, collate_trimmed
from referent.training.judging import BOXES, POINTS, REFERENTS, Judge, referents_validator, validator
from referent.training.losses import LossWeights, Objective
from referent.training.modes import TUNED_WHOLE, end_token, parameter_groups, select_trained
from referent.training.point_stream import PointStream
from referent.training.recipe import RESULT_FILE, Recipe
from referent.training.record_stream import DataError, RecordStream, load_records
from referent.training.trainer import GroundingTrainer, last_complete_checkpoint

LOG = logging.getLogger(__name__)


def train(recipe: Recipe) -> dict[str, float]:
    """Run a recipe to its end; returns the best validation figures, which are also in `OUT/result.json`.

    Raises `RecipeError`, `DataError` and `referent.modeling.checkpoint.CheckpointError`.
    """
    recipe.check()
    set_seed(recipe.seed)
    judge = {"points": POINTS, "referents": REFERENTS}.get(recipe.mode, BOXES)
    arguments = _arguments(recipe, judge)  # before the model: ZeRO-3 builds it in pieces
    model, spec = open_paligemma(recipe) if judge is POINTS else open_base(recipe)
    encoder = load_checkpoint_encoder(recipe.out, spec)
    select_trained(model, spec, encoder, recipe)
    model.checkpointing = recipe.gradient_checkpointing
    if recipe.gradient_checkpointing and recipe.mode in TUNED_WHOLE:
        model.base.model.vision_tower.gradient_checkpointing_enable({"use_reentrant": False})

    validation = load_records(recipe.data / "val.jsonl", recipe.images, recipe.val_limit, recipe.seed, judge.gives)
    stream = _stream(recipe, judge, model, spec, encoder)
    if judge is POINTS and not any(record.points for record in validation):
        raise DataError(f"no record of {recipe.data / 'val.jsonl'} has points to judge by")
    together = recipe.batch * recipe.accumulate * arguments.world_size
    steps = recipe.steps or math.ceil(recipe.epochs * len(stream.items) / together)
    stream.samples = steps * together
    arguments.max_steps = steps
    arguments.eval_steps = recipe.eval_steps or max(1, min(steps, len(stream.items) // together))
    arguments.save_steps = recipe.save_steps or arguments.eval_steps

    objective = Objective(model, LossWeights(recipe.l1_weight, recipe.giou_weight, recipe.score_weight))
    writer = CheckpointWriter(recipe, model, spec)
    of_records = isinstance(stream, RecordStream)
    collator = collate_answers if not of_records else collate if recipe.compile else collate_trimmed
    grounder = make_grounder(model, spec, encoder)
    if isinstance(grounder, ReferentGrounder):
        validate = referents_validator(grounder, model.referent_head, validation, recipe.images)
    else:
        validate = validator(grounder, validation, recipe.images, judge)
    trainer = GroundingTrainer(
        objective, stream, validate,
        keep=writer.keep, parameter_groups=parameter_groups(model, recipe), data_collator=collator, args=arguments,
    )  # fmt: skip
    writer.trainer = trainer
    if recipe.compile:
        objective.compile_steps()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(recipe.out))
    if not any(f"eval_{judge.figures[0]}" in line and line["step"] == steps for line in trainer.state.log_history):
        trainer.evaluate()
    return writer.finish()


def _stream(
    recipe: Recipe, judge: Judge, model: GroundingModel, spec: CheckpointSpec, encoder: PromptEncoder
) -> RecordStream | PointStream | DialogueStream:
    """The training data. Raises `DataError`."""
    if recipe.conversations is not None:
        dialogues = load_dialogues(recipe.conversations, recipe.images)
        stream = DialogueStream(dialogues, recipe.images, spec, encoder, recipe.seed, end_token(model))
        for reason, count in stream.left_out.items():
            LOG.warning("left out of %s: %d %s", recipe.conversations, count, reason)
        return stream
    file = recipe.data / "train.jsonl"
    records = load_records(file, recipe.images, recipe.train_limit, recipe.seed, judge.gives)
    if judge is POINTS:
        return PointStream(records, recipe.images, spec, encoder, recipe.seed, end_token(model))
    end = end_token(model) if recipe.answers_in_text else None
    grid = isqrt(spec.image_tokens) if judge is REFERENTS else None
    return RecordStream(records, recipe.images, spec, encoder, recipe.row_expressions, recipe.seed, end, grid)


def _arguments(recipe: Recipe, judge: Judge) -> TrainingArguments:
    """Trainer's settings; steps are set once the data is known."""
    on_gpu = torch.cuda.is_available()
    workers = {"dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True} if recipe.workers else {}
    return TrainingArguments(
        output_dir=str(recipe.out), max_steps=1, per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate, learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay, max_grad_norm=recipe.clip, warmup_steps=recipe.warmup,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": recipe.min_learning_rate},
        bf16=recipe.bf16, use_cpu=not on_gpu, ddp_backend="gloo" if "WORLD_SIZE" in os.environ and not on_gpu else None,
        ddp_find_unused_parameters=False, deepspeed=None if recipe.deepspeed is None else str(recipe.deepspeed),
        logging_steps=recipe.logging_steps, report_to="tensorboard", save_strategy="steps", save_total_limit=2,
        eval_strategy="steps", metric_for_best_model=judge.figures[0], greater_is_better=True,
        dataloader_num_workers=recipe.workers, remove_unused_columns=False, label_names=["boxes"], seed=recipe.seed,
        **workers,
    )  # fmt: skip


class CheckpointWriter:
    """Writes `last` at every validation, and `best` where it is the best so far."""

    def __init__(self, recipe: Recipe, model: GroundingModel, spec: CheckpointSpec) -> None:
        self._recipe, self._model, self._spec = recipe, model, spec
        self.trainer: GroundingTrainer | None = None

    def keep(self, figures: dict[str, float], best: bool) -> None:
        """Called on every process."""
        with _gathered(self._model):
            if self.trainer.is_world_process_zero():
                for name in ("last", "best") if best else ("last",):
                    self._write(self._recipe.out / name, figures)
                plot_curves(self.trainer.state.log_history, self._recipe.out / "curves.png")

    def finish(self) -> dict[str, float]:
        """Writes and returns the best figures; their file marks a finished run."""
        best = load_checkpoint_spec(self._recipe.out / "best").training
        if self.trainer.is_world_process_zero():
            content = {"steps": self.trainer.state.max_steps, "best_step": best["step"]} | best["validation"]
            (self._recipe.out / RESULT_FILE).write_text(json.dumps(content, indent=2) + "\n")
        return best["validation"]

    def _write(self, directory: Path, figures: dict[str, float]) -> None:
        threshold = figures.get("present_threshold")
        spec = self._spec.model_copy(
            update={
                "present_threshold": None if threshold is None else math.floor(1000 * threshold) / 1000,
                "referent_threshold": figures.get("referent_threshold"),
                "training": {
                    "commit": commit(),
                    "mode": self._recipe.mode,
                    "step": self.trainer.state.global_step,
                    "settings": self._recipe.settings(),
                    "validation": figures,
                },
            }
        )
        with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=directory.parent) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            save_checkpoint(new, self._model, spec, self._recipe.out / TOKENIZER_FILE)
            if directory.exists():
                os.rename(directory, old)
            os.rename(new, directory)


def _gathered(model: GroundingModel) -> AbstractContextManager[None]:
    """Whole weights where ZeRO-3 has split them over processes."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))
