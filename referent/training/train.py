"""One training run: a base and records in, `OUT/best` and `OUT/last` (checkpoints) out.

OUT also has the run's state (checkpoint-N): the same command continues from there, with the same data as in an
uninterrupted run.
"""

import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import BitsAndBytesConfig, LlavaConfig, TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.import_utils import is_bitsandbytes_available

from referent.core.bundle import TOKENIZER_FILE
from referent.core.grammar import PointGrammar
from referent.core.prompts import LOC_MARK, Prompt, PromptEncoder
from referent.core.provenance import commit
from referent.data.records import Record
from referent.evaluation.evaluate import Results, join, point_figures, summary
from referent.evaluation.predictors import ask_checkpoint
from referent.modeling.checkpoint import (
    ADAPTER_DIRECTORY,
    BASE_DIRECTORY,
    SPEC_FILE,
    CheckpointSpec,
    check_base,
    load_checkpoint_encoder,
    load_checkpoint_spec,
    load_head,
    load_tokenizer,
    load_visual_prompts,
    make_head,
    make_model,
    save_checkpoint,
)
from referent.modeling.grounder import ModelGrounder, ReferentGrounder, make_grounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import ReferentHead
from referent.modeling.importers.detr import load_visual_prompts as prompts_on_detr
from referent.modeling.importers.paligemma import POINT_TEMPLATE, paligemma_spec
from referent.modeling.importers.vpp_llava import GRAMMAR as VPP_GRAMMAR
from referent.modeling.importers.vpp_llava import TEMPLATE as VPP_TEMPLATE
from referent.modeling.llava import (
    TEMPLATES,
    TRAINED_GRAMMAR,
    add_visual_prompts,
    llava_spec,
    llava_tokenizer,
    text_generation,
)
from referent.modeling.vpp import VisualPrompts
from referent.modeling.weights import load_llava, load_llava_config, load_paligemma
from referent.training.calibration import Judged, calibrate
from referent.training.curves import plot_curves
from referent.training.dialogue_stream import DialogueStream, load_dialogues
from referent.training.encoding import collate, collate_answers, collate_trimmed
from referent.training.losses import LossWeights, Objective
from referent.training.modes import TUNED_WHOLE, end_token, parameter_groups, select_trained
from referent.training.point_stream import PointStream
from referent.training.recipe import RESULT_FILE, Recipe, RecipeError
from referent.training.record_stream import DataError, RecordStream, load_records, open_image
from referent.training.trainer import GroundingTrainer, last_complete_checkpoint

LOG = logging.getLogger(__name__)
UNQUANTIZED = ("model.vision_tower", "model.multi_modal_projector", "lm_head")  # names begin so
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Judge(NamedTuple):
    """The figures that a run is judged by; the first of them decides which checkpoint is the best."""

    gives: Literal["boxes", "points"]
    measure: Callable[[Results], dict[str, Any]]
    figures: tuple[str, ...]


REFERENTS = Judge("boxes", summary, ("f1",))  # of calibrated scores: `referents_validator`
BOXES = Judge("boxes", summary, ("mean_iou", "acc@0.5", "auroc", "present_threshold", "invalid", "n"))
POINTS = Judge("points", point_figures, ("f1", "precision", "recall", "success", "parse_rate", "distance_share", "n"))


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


def open_base(recipe: Recipe) -> tuple[GroundingModel, CheckpointSpec]:
    """The model to train and the spec of its checkpoints; its tokenizer goes to OUT.

    The base is one of our checkpoints, or any LLaVA directory. Raises `RecipeError` and `CheckpointError`.
    """
    text, prompted = recipe.answers_in_text, recipe.mode == "vpp"
    kind = "referents" if recipe.mode == "referents" else "generator" if text else "head"
    ours = (recipe.base / SPEC_FILE).is_file()
    own: CheckpointSpec | None = None  # the base's, where it is one of ours
    if ours:
        spec = own = load_checkpoint_spec(recipe.base)
        if spec.visual_prompts is not None and not prompted:
            raise RecipeError(f"{recipe.base} has visual position prompts: train it with vpp, or name another base")
        if (recipe.base / ADAPTER_DIRECTORY).is_dir():
            raise RecipeError(f"{recipe.base} has an adapter already: start from its base, {recipe.base / spec.base}")
        if recipe.center_crop or (recipe.plain_text_loc and not prompted):
            raise RecipeError("--center-crop and --plain-text-loc are for LLaVA directories; a checkpoint has its own")
        directory, tokenizer = recipe.base / spec.base, load_tokenizer(recipe.base)
    elif (recipe.base / "config.json").is_file():
        directory, tokenizer = recipe.base, llava_tokenizer(recipe.base)
    else:
        raise RecipeError(f"{recipe.base} is not a base: it has neither {SPEC_FILE} nor config.json")
    config = load_llava_config(directory)
    prompts = _visual_prompts(recipe, own, config) if prompted else None
    if own is None or (prompted and own.kind != kind):  # a prompt for another kind of answer
        spec = llava_spec(
            directory, tokenizer, template=recipe.template or (VPP_TEMPLATE if prompted and text else None),
            center_crop=recipe.center_crop, plain_text_loc=recipe.plain_text_loc,
            kind="generator" if text else "head", visual_prompts=prompts and prompts.shape,
        )  # fmt: skip
    else:
        if recipe.template:
            spec = spec.model_copy(update={"prompt": _prompt(spec, TEMPLATES.get(recipe.template, recipe.template))})
        if prompts is not None and own.visual_prompts is None:
            spec = add_visual_prompts(spec, prompts.shape)
    check_base(recipe.base, spec, config, tokenizer)
    llava = load_llava(directory, DTYPES[recipe.base_dtype], _quantization(recipe))
    keep_head = own is not None and own.kind == kind and not recipe.fresh_head
    generation = None
    if text:
        generation = text_generation(
            end_token(GroundingModel(llava, None)), VPP_GRAMMAR if prompted else TRAINED_GRAMMAR
        )
    updates: dict[str, Any] = {
        "base": BASE_DIRECTORY if recipe.mode in TUNED_WHOLE else str(directory.resolve()),
        "kind": kind,
        "generation": generation,
        "has_scores": not text and (spec.has_scores if keep_head else recipe.scores),
        "present_threshold": 0.5 if kind == "referents" else None,  # until validation says better
        "referent_threshold": 0.5 if kind == "referents" else None,
        "evaluation": {},
        "knows": recipe.knows,  # what the base knows isn't what this data teaches
    }
    try:
        trained = CheckpointSpec(**spec.model_dump() | updates)
    except ValidationError as error:
        raise RecipeError(f"{recipe.base} cannot be trained so: {error.errors()[0]['msg']}") from error
    hidden_size = config.text_config.hidden_size
    head = load_head(recipe.base, spec, hidden_size) if keep_head else make_head(trained, hidden_size)
    model = make_model(llava, head)
    model.visual_prompts = prompts
    _keep_tokenizer(tokenizer, recipe)
    return model, trained


def _visual_prompts(recipe: Recipe, own: CheckpointSpec | None, config: LlavaConfig) -> VisualPrompts:
    """Those of the base, or new ones on DETR's weights. Raises `RecipeError` and `CheckpointError`."""
    if own is not None and own.visual_prompts is not None:
        if recipe.detector is not None:
            raise RecipeError(f"{recipe.base} has visual position prompts already: leave --detector out")
        return load_visual_prompts(recipe.base, own, config)
    if recipe.detector is None:
        raise RecipeError(
            f"{recipe.base} has no visual position prompts: name DETR's weights, such as detr-r101-2c7b67e5.pth, as "
            "--detector, or a base imported from VPP-LLaVA"
        )
    return prompts_on_detr(recipe.detector, config.vision_config.image_size, config.text_config.hidden_size)


def open_paligemma(recipe: Recipe) -> tuple[GroundingModel, CheckpointSpec]:
    """As `open_base`, a PaliGemma directory or a checkpoint on one, to answer with points or that nothing is there."""
    if unfit := [name for name in ("center_crop", "plain_text_loc", "compile") if getattr(recipe, name)]:
        raise RecipeError(f"--{unfit[0].replace('_', '-')} is not for points: leave it out")
    directory = recipe.base
    if (recipe.base / SPEC_FILE).is_file():
        directory = recipe.base / load_checkpoint_spec(recipe.base).base
        if (recipe.base / ADAPTER_DIRECTORY).is_dir():
            raise RecipeError(f"{recipe.base} has an adapter already: start from its base, {directory}")
    elif not (recipe.base / "config.json").is_file():
        raise RecipeError(f"{recipe.base} is not a base: it has neither {SPEC_FILE} nor config.json")
    spec = paligemma_spec(directory, PointGrammar(none=True), recipe.template or POINT_TEMPLATE)
    tokenizer = load_tokenizer(directory)
    paligemma = load_paligemma(directory, DTYPES[recipe.base_dtype], _quantization(recipe))
    check_base(recipe.base, spec, paligemma.config, tokenizer)
    _keep_tokenizer(tokenizer, recipe)
    return make_model(paligemma, None), spec


def _keep_tokenizer(tokenizer: Tokenizer, recipe: Recipe) -> None:
    if PartialState().is_main_process:
        recipe.out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(recipe.out / TOKENIZER_FILE))
    PartialState().wait_for_everyone()


def _prompt(spec: CheckpointSpec, template: str) -> Prompt:
    loc = spec.prompt.loc_token_id if template.endswith(LOC_MARK) else None
    return Prompt(**spec.prompt.model_dump() | {"template": template, "loc_token_id": loc})


def _quantization(recipe: Recipe) -> BitsAndBytesConfig | None:
    """4 bits for the language model's layers in `qlora`; the vision side and the embeddings stay as they are."""
    if recipe.four_bits and recipe.mode != "points":
        raise RecipeError("--four-bits is for points: the mode qlora has 4 bits by itself")
    if recipe.mode != "qlora" and not recipe.four_bits:
        return None
    if not is_bitsandbytes_available():
        without = "leave --four-bits out" if recipe.four_bits else "use lora"
        raise RecipeError(f"4 bits need bitsandbytes: pip install bitsandbytes, or {without}")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(UNQUANTIZED),
    )  # fmt: skip


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


def validator(
    grounder: ModelGrounder, records: Sequence[Record], images: Path, judge: Judge = BOXES
) -> Callable[[], dict[str, float]]:
    """Figures on the records; each process asks about its share of the images, and all get the same figures."""
    state = PartialState()
    rank = {image: index for index, image in enumerate(dict.fromkeys(record.image for record in records))}
    # under ZeRO-3 every process takes part in every pass, so each asks all
    shares = 1 if is_deepspeed_zero3_enabled() else state.num_processes
    own = [record for record in records if rank[record.image] % shares == state.process_index % shares]

    def validate() -> dict[str, float]:
        predictions = list(ask_checkpoint(grounder, own, images))
        figures = judge.measure(join(records, gather_object(predictions) if shares > 1 else predictions))
        return {name: figures[name] for name in judge.figures if figures.get(name) is not None}

    return validate


def referents_validator(
    grounder: ReferentGrounder, head: ReferentHead, records: Sequence[Record], images: Path
) -> Callable[[], dict[str, float]]:
    """Calibrates the head and gives its thresholds and figures; each process asks about its share of the images.

    Raises `DataError` if the records lack present or absent objects.
    """
    if len({record.present for record in records}) < 2:
        raise DataError(
            "val.jsonl needs expressions of objects that are there and of some that are not: add the others"
        )
    state = PartialState()
    about: dict[str, list[Record]] = {}
    for record in records:
        about.setdefault(record.image, []).append(record)
    shares = 1 if is_deepspeed_zero3_enabled() else state.num_processes
    own = list(about.values())[state.process_index if shares > 1 else 0 :: shares]

    def validate() -> dict[str, float]:
        found = []
        for of_image in own:
            picture = open_image(of_image[0], images, grounder.spec.image)
            candidates = grounder.candidates(picture, [record.expression for record in of_image])
            for record, given in zip(of_image, candidates, strict=True):
                found.append(Judged(given, np.array(record.boxes, np.float64).reshape(-1, 4)))
        calibration = calibrate(head, gather_object(found) if shares > 1 else found)
        thresholds = {"present_threshold": calibration.present_threshold}
        thresholds["referent_threshold"] = calibration.referent_threshold
        return calibration.figures | thresholds | {"n": len(records)}

    return validate


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
