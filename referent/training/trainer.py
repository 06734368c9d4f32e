"""transformers' Trainer for the grounding objective: curriculum, logged parts, validation by a figure."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from referent.training.encoding import TrainingRow, collate
from referent.training.losses import Objective

WEIGHTS_FILE = "model.safetensors"


class GroundingTrainer(Trainer):
    """Trains an `Objective` on a stream of rows, read in order.

    `validate` returns figures for the log; `keep` is told of them, and whether they are the best so far, on every
    process. `expressions_from_step` is where the curriculum adds everything at [LOC] to dense supervision. AdamW takes
    `parameter_groups`, unless Trainer's own `optimizers` are given.
    """

    def __init__(
        self,
        objective: Objective,
        stream: Dataset[TrainingRow],
        validate: Callable[[], dict[str, float]],
        keep: Callable[[dict[str, float], bool], None] = lambda figures, best: None,
        expressions_from_step: int = 0,
        parameter_groups: list[dict[str, Any]] | None = None,
        data_collator: Callable[[list[TrainingRow]], dict[str, torch.Tensor]] = collate,
        **arguments: Any,
    ) -> None:
        # Trainer wants an eval_dataset; `evaluate` below calls `validate` instead
        super().__init__(
            model=objective, train_dataset=stream, eval_dataset=[], data_collator=data_collator, **arguments
        )
        self._validate = validate
        self._keep = keep
        self._expressions_from_step = expressions_from_step
        self._parameter_groups = parameter_groups
        self._parts: dict[str, list[torch.Tensor]] = {}

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the parameter groups."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                self._parameter_groups, lr=self.args.learning_rate, weight_decay=self.args.weight_decay
            )
        return self.optimizer

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """On the CPU with plain matrix products for attention: the fused kernel goes back several times slower."""
        with sdpa_kernel(SDPBackend.MATH) if self.args.device.type == "cpu" else nullcontext():
            return super().training_step(*arguments, **named)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        """The objective's loss; its parts are averaged into the next log line."""
        self.model.expressions = self.state.global_step >= self._expressions_from_step
        with self.compute_loss_context_manager():
            parts = model(**inputs)
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(value.detach())
        return parts["loss"]

    def log(self, logs: dict[str, float], *arguments: Any) -> None:
        """Adds the parts of the loss since the last line."""
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self._parts.items()}
            self._parts.clear()
        super().log(logs, *arguments)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Figures of `validate`, logged as eval_*."""
        self.model.eval()
        found = self._validate()
        self.model.train()
        figures = {f"eval_{name}": value for name, value in found.items()}
        self.log(dict(figures))
        judged = found[str(self.args.metric_for_best_model)]
        self._keep(found, self.state.best_metric is None or judged > self.state.best_metric)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """What is trained alone: the rest is the base's."""
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_file(trained_state(self.model, state_dict), directory / WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        model = model or self.model
        state, own = load_file(Path(resume_from_checkpoint) / WEIGHTS_FILE), trained_state(model)
        misshaped = {name for name in state.keys() & own.keys() if state[name].shape != own[name].shape}
        if other := sorted(state.keys() ^ own.keys() | misshaped):
            raise RuntimeError(
                f"{resume_from_checkpoint} does not fit this model: {other[:5]} differ; "
                "resume with the settings that it was trained with, or choose another --out"
            )
        model.load_state_dict(state, strict=False)


def trained_state(module: torch.nn.Module, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Trained parameters and all buffers; a tensor that has two names is saved under one."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    kept = trained | {name for name, _ in module.named_buffers()}
    state = module.state_dict() if state is None else state
    return {name: value.contiguous() for name, value in state.items() if name in kept}


def last_complete_checkpoint(directory: Path) -> Path | None:
    """The newest resumable state of a run; those that a kill left half-written are removed."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in found:
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text())  # Trainer writes this file last
            return path
        except (OSError, ValueError):
            rmtree(path)
    return None
