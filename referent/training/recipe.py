"""A training run's settings, which are the options of `referent train` too; the defaults are visual-grounding-api's
published recipe."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Mode = Literal[
    "frozen", "lora", "qlora", "full", "text", "points", "referents", "vpp"
]  # `referent.training.modes` says what each trains
# what `referent sweep` takes as well
Base = Annotated[Path, typer.Option(help="One of our checkpoints, or a LLaVA directory; a PaliGemma one for points.")]
Data = Annotated[Path, typer.Option(help="Folder with train.jsonl and val.jsonl of `referent data prepare`.")]
Images = Annotated[Path, typer.Option(help="Folder that the records' image paths are relative to.")]

RESULT_FILE = "result.json"  # in `out`: the best validation figures


class RecipeError(ValueError):
    """Settings that do not go together, or with this machine; the message names the remedy."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a run: each field is an option of `referent train`, with its help.

    Learning rates of groups other than the head are only for `full` and `vpp`.
    """

    mode: Annotated[
        Mode,
        typer.Argument(
            help="What is trained: head; adapter and head; the same on 4 bits; everything; answers in text; points; "
            "adapter and a head for every referent; everything, with visual position prompts."
        ),
    ]
    base: Base
    data: Data
    images: Images
    out: Annotated[Path, typer.Option(help="Where checkpoints go; a run found there is resumed.")]
    epochs: Annotated[float, typer.Option(help="Passes over the data; --steps overrides it.")] = 10.0
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None
    batch: Annotated[int, typer.Option(help="Images a step and process.")] = 8
    accumulate: Annotated[int, typer.Option(help="Batches a step.")] = 1
    learning_rate: Annotated[float, typer.Option(help="Peak; in `full` and `vpp` of what is new.")] = 2e-4
    vision_learning_rate: Annotated[float, typer.Option(help="`full` and `vpp` only.")] = 2e-6
    projector_learning_rate: Annotated[float, typer.Option(help="`full` and `vpp` only.")] = 2e-5
    language_learning_rate: Annotated[float, typer.Option(help="`full` and `vpp` only.")] = 2e-5
    detector_learning_rate: Annotated[float, typer.Option(help="`vpp` only.")] = 1e-5
    min_learning_rate: Annotated[float, typer.Option(help="Where the cosine ends.")] = 1e-6
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 0
    weight_decay: float = 0.0
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0
    l1_weight: Annotated[float, typer.Option(help="Weight of the L1 loss, the mean over cx, cy, w, h.")] = 1.0
    giou_weight: Annotated[float, typer.Option(help="Weight of 1 - GIoU.")] = 1.0
    score_weight: Annotated[float, typer.Option(help="Weight of the loss of the predicted IoU.")] = 1.0
    scores: Annotated[bool, typer.Option(help="Give a fresh head scores.")] = True
    four_bits: Annotated[bool, typer.Option(help="`points` only: the base in 4 bits, as in `qlora`.")] = False
    detector: Annotated[
        Path | None, typer.Option(help="`vpp` only: DETR's weights, for a base without visual position prompts.")
    ] = None
    conversations: Annotated[
        Path | None,
        typer.Option(help="`vpp` only: conversations as of LLaVA or VPP-SFT, every answer, in place of train.jsonl."),
    ] = None
    loc_head: Annotated[bool, typer.Option(help="`vpp` only: a box head at [LOC], in place of text.")] = False
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    row_expressions: Annotated[int, typer.Option(help="Expressions of an image in a pass.")] = 8
    train_limit: Annotated[int | None, typer.Option(help="Use a random choice of so many training records.")] = None
    val_limit: Annotated[int | None, typer.Option(help="Use a random choice of so many validation records.")] = None
    eval_steps: Annotated[int | None, typer.Option(help="Steps between validations.", show_default="an epoch")] = None
    save_steps: Annotated[
        int | None, typer.Option(help="Steps between states to resume from.", show_default="--eval-steps")
    ] = None
    logging_steps: int = 10
    seed: int = 42
    workers: Annotated[int, typer.Option(help="Processes that prepare data.")] = 2
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = False
    base_dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="The base's weights in memory; `full` needs fp32.")
    ] = "fp32"
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False
    compile: Annotated[bool, typer.Option(help="torch.compile; rows are then of one length.")] = False
    deepspeed: Annotated[Path | None, typer.Option(help="DeepSpeed's configuration, as runs/zero3.json.")] = None
    fresh_head: Annotated[bool, typer.Option(help="Do not keep the head of a checkpoint.")] = False
    center_crop: Annotated[bool, typer.Option(help="CLIP's crop and boxes of the whole image, for LLaVA.")] = False
    plain_text_loc: Annotated[bool, typer.Option(help="[LOC] as a word, not as a token, for LLaVA.")] = False
    template: Annotated[str | None, typer.Option(help="Prompt; vg and vg-text name the published ones.")] = None
    knows: Annotated[
        str | None, typer.Option(help="What the trained model knows, in words that the page and `models` show.")
    ] = None

    @property
    def answers_in_text(self) -> bool:
        """Whether the model is to write its boxes."""
        return self.mode == "text" or (self.mode == "vpp" and not self.loc_head)

    def check(self) -> None:
        """Raises `RecipeError` for options of another mode, and for those that exclude each other."""
        only = {"--detector": self.detector, "--conversations": self.conversations, "--loc-head": self.loc_head}
        if self.mode != "vpp" and (given := next((option for option, value in only.items() if value), None)):
            raise RecipeError(f"{given} is for vpp: leave it out with {self.mode}")
        if self.conversations is not None:
            own: dict[str, object] = {"--loc-head": self.loc_head, "--template": self.template}
            own |= {"--compile": self.compile, "--train-limit": self.train_limit}
            if given := next((option for option, value in own.items() if value), None):
                raise RecipeError(f"--conversations and {given} exclude each other: leave one out")

    def settings(self) -> dict[str, Any]:
        """All settings except paths on this machine."""
        return {name: value for name, value in asdict(self).items() if not isinstance(value, Path)}
