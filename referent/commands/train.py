"""`referent train` and `referent sweep`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from referent.commands.terminal import failure
from referent.training.recipe import Mode, Recipe, RecipeError

BASE = Annotated[Path, typer.Option(help="One of our checkpoints, or a LLaVA directory (config.json, weights).")]
SWEEP_CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}  # for app.command(context_settings=...)
DATA = Annotated[Path, typer.Option(help="Folder with train.jsonl and val.jsonl of `referent data prepare`.")]
IMAGES = Annotated[Path, typer.Option(help="Folder that the records' image paths are relative to.")]


def train(
    mode: Annotated[
        Mode,
        typer.Argument(help="What is trained: head; adapter and head; the same on 4 bits; everything; text answers."),
    ],
    base: BASE,
    data: DATA,
    images: IMAGES,
    out: Annotated[Path, typer.Option(help="Where checkpoints go; a run found there is resumed.")],
    epochs: Annotated[float, typer.Option(help="Passes over the data; --steps overrides it.")] = Recipe.epochs,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = Recipe.steps,
    batch: Annotated[int, typer.Option(help="Images a step and process.")] = Recipe.batch,
    accumulate: Annotated[int, typer.Option(help="Batches a step.")] = Recipe.accumulate,
    learning_rate: Annotated[float, typer.Option(help="Peak; in `full` the head's.")] = Recipe.learning_rate,
    vision_learning_rate: Annotated[float, typer.Option(help="`full` only.")] = Recipe.vision_learning_rate,
    projector_learning_rate: Annotated[float, typer.Option(help="`full` only.")] = Recipe.projector_learning_rate,
    language_learning_rate: Annotated[float, typer.Option(help="`full` only.")] = Recipe.language_learning_rate,
    min_learning_rate: Annotated[float, typer.Option(help="Where the cosine ends.")] = Recipe.min_learning_rate,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = Recipe.warmup,
    weight_decay: Annotated[float, typer.Option()] = Recipe.weight_decay,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = Recipe.clip,
    l1_weight: Annotated[float, typer.Option(help="Of L1, the mean over cx, cy, w, h.")] = Recipe.l1_weight,
    giou_weight: Annotated[float, typer.Option(help="Of 1 - GIoU.")] = Recipe.giou_weight,
    score_weight: Annotated[float, typer.Option(help="Of the predicted IoU.")] = Recipe.score_weight,
    scores: Annotated[bool, typer.Option(help="Give a fresh head scores.")] = Recipe.scores,
    lora_rank: Annotated[int, typer.Option()] = Recipe.lora_rank,
    lora_alpha: Annotated[int, typer.Option()] = Recipe.lora_alpha,
    lora_dropout: Annotated[float, typer.Option()] = Recipe.lora_dropout,
    row_expressions: Annotated[int, typer.Option(help="Expressions of an image in a pass.")] = Recipe.row_expressions,
    train_limit: Annotated[int | None, typer.Option(help="Random choice of training records.")] = Recipe.train_limit,
    val_limit: Annotated[int | None, typer.Option(help="Random choice of validation records.")] = Recipe.val_limit,
    eval_steps: Annotated[
        int | None, typer.Option(help="Between validations.", show_default="an epoch")
    ] = Recipe.eval_steps,
    save_steps: Annotated[
        int | None, typer.Option(help="Between states to resume from.", show_default="--eval-steps")
    ] = Recipe.save_steps,
    logging_steps: Annotated[int, typer.Option()] = Recipe.logging_steps,
    seed: Annotated[int, typer.Option()] = Recipe.seed,
    workers: Annotated[int, typer.Option(help="Processes that prepare data.")] = Recipe.workers,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = Recipe.bf16,
    base_dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="The base's weights in memory; `full` needs fp32.")
    ] = "fp32",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    compile: Annotated[bool, typer.Option(help="torch.compile; rows are then of one length.")] = False,
    deepspeed: Annotated[Path | None, typer.Option(help="DeepSpeed's configuration, as runs/zero3.json.")] = None,
    fresh_head: Annotated[bool, typer.Option(help="Do not keep the head of a checkpoint.")] = False,
    center_crop: Annotated[bool, typer.Option(help="CLIP's crop and boxes of the whole image, for LLaVA.")] = False,
    plain_text_loc: Annotated[bool, typer.Option(help="[LOC] as a word, not as a token, for LLaVA.")] = False,
    template: Annotated[str | None, typer.Option(help="Prompt; vg and vg-text name the published ones.")] = None,
) -> None:
    """Train a grounding model on records. The defaults are the published recipe."""
    recipe = Recipe(**locals())  # first: the parameters are the settings
    try:
        from referent.modeling.checkpoint import CheckpointError
        from referent.training.record_stream import DataError
        from referent.training.train import train as run
    except ModuleNotFoundError as error:
        raise failure(f"{error}; training needs: pip install 'referent[train]'") from error
    try:
        figures = run(recipe)
    except (CheckpointError, DataError, RecipeError) as error:
        raise failure(str(error)) from error
    typer.echo(", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + f": {out / 'best'}")
    if mode != "text":
        typer.echo(f"to serve it: referent export {out / 'best'} --name NAME")


def sweep(
    context: typer.Context,
    base: BASE,
    data: DATA,
    images: IMAGES,
    out: Annotated[Path, typer.Option(help="A folder for each cell, and the results; finished cells stay.")],
    mode: Annotated[Literal["lora", "qlora", "text"], typer.Option(help="As of `referent train`.")] = "lora",
    ranks: Annotated[str, typer.Option(help="Of LoRA; alpha is twice the rank.")] = "8,16,32",
    learning_rates: Annotated[str, typer.Option()] = "1e-4,2e-4",
    batches: Annotated[str, typer.Option()] = "8,16",
) -> None:
    """Train every combination of rank, learning rate and batch; further options go to `referent train`."""
    import subprocess

    from rich.console import Console

    try:
        from referent.training.sweep import grid, run_sweep, write_results
    except ModuleNotFoundError as error:
        raise failure(f"{error}; training needs: pip install 'referent[train]'") from error
    try:
        cells = grid(
            [int(v) for v in ranks.split(",")], [float(v) for v in learning_rates.split(",")],
            [int(v) for v in batches.split(",")],
        )  # fmt: skip
    except ValueError as error:
        raise failure(f"{error}: --ranks, --learning-rates and --batches are numbers with commas between") from error
    options = [mode, "--base", str(base), "--data", str(data), "--images", str(images), *context.args]
    results = []
    try:
        for result in run_sweep(cells, options, out):
            results.append(result)
            table = write_results(results, out)
    except subprocess.CalledProcessError as error:
        raise failure(f"a cell failed (exit status {error.returncode}), see above; the same command goes on") from error
    Console().print(table)
