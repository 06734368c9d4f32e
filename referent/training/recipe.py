"""A training run's settings; the defaults are visual-grounding-api's published recipe."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Mode = Literal["frozen", "lora", "qlora", "full", "text"]  # `referent.training.modes` says what each trains


class RecipeError(ValueError):
    """Settings that do not go together, or with this machine; the message names the remedy."""


@dataclass(frozen=True)
class Recipe:
    """What `referent train` takes; see its help. Learning rates of the groups beside the head serve `full` alone."""

    mode: Mode
    base: Path
    data: Path
    images: Path
    out: Path
    epochs: float = 10.0
    steps: int | None = None
    batch: int = 8
    accumulate: int = 1
    learning_rate: float = 2e-4
    vision_learning_rate: float = 2e-6
    projector_learning_rate: float = 2e-5
    language_learning_rate: float = 2e-5
    min_learning_rate: float = 1e-6
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    l1_weight: float = 1.0
    giou_weight: float = 1.0
    score_weight: float = 1.0
    scores: bool = True
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    row_expressions: int = 8
    train_limit: int | None = None
    val_limit: int | None = None
    eval_steps: int | None = None
    save_steps: int | None = None
    logging_steps: int = 10
    seed: int = 42
    workers: int = 2
    bf16: bool = False
    base_dtype: str = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    deepspeed: Path | None = None
    fresh_head: bool = False
    center_crop: bool = False
    plain_text_loc: bool = False
    template: str | None = None

    def settings(self) -> dict[str, Any]:
        """All but where things are on this machine."""
        return {name: value for name, value in asdict(self).items() if not isinstance(value, Path)}
