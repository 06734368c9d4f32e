"""transformers' Trainer for the grounding objective: curriculum, logged parts, validation by mean IoU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Trainer

from referent.training.losses import Objective
from referent.training.samples import SceneStream, collate

WEIGHTS_FILE = "model.safetensors"


class GroundingTrainer(Trainer):
    """Trains an `Objective` on a `SceneStream`, read in order.

    `validate` returns figures for the log; `expressions_from_step` is where the curriculum adds everything at [LOC]
    to dense supervision.
    """

    def __init__(
        self,
        objective: Objective,
        stream: SceneStream,
        validate: Callable[[], dict[str, float]],
        expressions_from_step: int = 0,
        **arguments: Any,
    ) -> None:
        # Trainer wants an eval_dataset; `evaluate` below calls `validate` instead
        super().__init__(model=objective, train_dataset=stream, eval_dataset=[], data_collator=collate, **arguments)
        self._validate = validate
        self._expressions_from_step = expressions_from_step
        self._parts: dict[str, list[torch.Tensor]] = {}

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Objective, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        """The objective's loss; its parts are averaged into the next log line."""
        model.expressions = self.state.global_step >= self._expressions_from_step
        # the fused CPU kernel's backward pass is several times slower than plain matrix products
        with self.compute_loss_context_manager(), sdpa_kernel(SDPBackend.MATH):
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
        figures = {f"eval_{name}": value for name, value in self._validate().items()}
        self.model.train()
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Trainer's own writer and reader refuse the embeddings that lm_head shares."""
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(directory / WEIGHTS_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_model(model or self.model, Path(resume_from_checkpoint) / WEIGHTS_FILE)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
