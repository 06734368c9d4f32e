"""A training run's settings, which are the options of `referent train` too; the defaults are visual-grounding-api's
published recipe."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

Mode = Literal[
    "frozen", "lora", "qlora", "full", "text", "points", "referents", "vpp"
]  # `referent.training.modes` says what each trains
# what `referent sweep` takes as well
Base = Annotated[Path, typer.Option(help="One of our checkpoints, or a LLaVA directory; a PaliGemma one for points.")]
Data = Annotated[Path, typer.Option(help="Folder with train.jsonl and val.jsonl of `referent data prepare`.")]
Images = Annotated[Path, typer.Option(help="Folder that the records' image paths are relative to.")]

RESULT_FILE = "result.json"  # in `out`: the best validation figures


class LowRankAdapter(NamedTuple):
    """Low-rank adapters; their output is multiplied by alpha / rank."""

    lora_rank: int
    lora_alpha: int
    lora_dropout: float


VISUAL_GROUNDING, POINT_VLM = LowRankAdapter(16, 32, 0.05), LowRankAdapter(8, 8, 0.1)  # as published


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
            help="frozen: the head alone. lora: an adapter and the head. qlora: the same on a base in 4 bits. "
            "full: all weights. text: answers in text. points: points in text. referents: an adapter and a head for "
            "every referent. vpp: all weights, with visual position prompts."
        ),
    ]
    base: Base
    data: Data
    images: Images
    out: Annotated[Path, typer.Option(help="Where checkpoints go; a run found there is resumed.")]
    epochs: Annotated[float, typer.Option(help="Passes over the data; --steps takes precedence.")] = 10.0
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer, in place of --epochs.")] = None
    batch: Annotated[int, typer.Option(help="Images in a step, in each process.")] = 8
    accumulate: Annotated[int, typer.Option(help="Batches whose gradients are added up for one step.")] = 1
    learning_rate: Annotated[
        float, typer.Option(help="Highest learning rate; of new weights, with `full` and `vpp`.")
    ] = 2e-4
    vision_learning_rate: Annotated[
        float, typer.Option(help="Learning rate of the vision encoder, with `full` and `vpp`.")
    ] = 2e-6
    projector_learning_rate: Annotated[
        float, typer.Option(help="Learning rate of the projector, with `full` and `vpp`.")
    ] = 2e-5
    language_learning_rate: Annotated[
        float, typer.Option(help="Learning rate of the language model, with `full` and `vpp`.")
    ] = 2e-5
    detector_learning_rate: Annotated[float, typer.Option(help="Learning rate of the detector, with `vpp`.")] = 1e-5
    min_learning_rate: Annotated[float, typer.Option(help="Lowest learning rate, at the end of the cosine.")] = 1e-6
    warmup: Annotated[int, typer.Option(help="Steps in which the learning rate rises.")] = 0
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.0
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0
    l1_weight: Annotated[float, typer.Option(help="Weight of the L1 loss, the mean over cx, cy, w, h.")] = 1.0
    giou_weight: Annotated[float, typer.Option(help="Weight of 1 - GIoU.")] = 1.0
    score_weight: Annotated[float, typer.Option(help="Weight of the loss of the predicted IoU.")] = 1.0
    scores: Annotated[bool, typer.Option(help="Give a new head scores.")] = True
    four_bits: Annotated[bool, typer.Option(help="With `points`: the base in 4 bits, as with `qlora`.")] = False
    detector: Annotated[
        Path | None, typer.Option(help="With `vpp`: weights of DETR, for a base without visual position prompts.")
    ] = None
    conversations: Annotated[
        Path | None,
        typer.Option(help="With `vpp`: a file of conversations (LLaVA, VPP-SFT) in place of train.jsonl."),
    ] = None
    loc_head: Annotated[bool, typer.Option(help="With `vpp`: a box head at [LOC] in place of text.")] = False
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the adapter.", show_default="16; with points 8")
    ] = None
    lora_alpha: Annotated[
        int | None,
        typer.Option(help="The adapter's output is multiplied by alpha / rank.", show_default="32; with points 8"),
    ] = None
    lora_dropout: Annotated[
        float | None, typer.Option(help="Dropout in the adapter.", show_default="0.05; with points 0.1")
    ] = None
    row_expressions: Annotated[int, typer.Option(help="Expressions of an image that one pass answers.")] = 8
    train_limit: Annotated[int | None, typer.Option(help="Train on this many records, chosen at random.")] = None
    val_limit: Annotated[int | None, typer.Option(help="Validate on this many records, chosen at random.")] = None
    eval_steps: Annotated[int | None, typer.Option(help="Steps between validations.", show_default="an epoch")] = None
    save_steps: Annotated[
        int | None,
        typer.Option(help="Steps between saved states, from which a run can continue.", show_default="--eval-steps"),
    ] = None
    logging_steps: Annotated[int, typer.Option(help="Steps between lines of the log.")] = 10
    seed: Annotated[int, typer.Option(help="Random seed of the order of the data and of new weights.")] = 42
    workers: Annotated[int, typer.Option(help="Processes that prepare data.")] = 2
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = False
    base_dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="Type of the base's weights in memory; `full` needs fp32.")
    ] = "fp32"
    gradient_checkpointing: Annotated[bool, typer.Option(help="Compute activations twice: less memory, more time.")] = (
        False
    )
    compile: Annotated[bool, typer.Option(help="Use torch.compile; all rows then have one length.")] = False
    deepspeed: Annotated[Path | None, typer.Option(help="A configuration of DeepSpeed, such as runs/zero3.json.")] = (
        None
    )
    fresh_head: Annotated[bool, typer.Option(help="Start with a new head, not with that of the checkpoint.")] = False
    center_crop: Annotated[
        bool, typer.Option(help="For LLaVA: crop as CLIP does; boxes are those of the whole image.")
    ] = False
    plain_text_loc: Annotated[bool, typer.Option(help="For LLaVA: [LOC] is plain text, not a token of its own.")] = (
        False
    )
    template: Annotated[str | None, typer.Option(help="The prompt; `vg` and `vg-text` are the published ones.")] = None
    knows: Annotated[
        str | None, typer.Option(help="What the model knows, in words for the page and `referent models --json`.")
    ] = None

    @property
    def answers_in_text(self) -> bool:
        """Whether the model is to write its boxes."""
        return self.mode == "text" or (self.mode == "vpp" and not self.loc_head)

    @property
    def adapter(self) -> "LowRankAdapter":
        """The adapter that is trained: what is not given is as published."""
        given = (self.lora_rank, self.lora_alpha, self.lora_dropout)
        published = POINT_VLM if self.mode == "points" else VISUAL_GROUNDING
        return LowRankAdapter(*(own if mine is None else mine for mine, own in zip(given, published, strict=True)))

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
        settings = asdict(self) | self.adapter._asdict()
        return {name: value for name, value in settings.items() if not isinstance(value, Path)}
