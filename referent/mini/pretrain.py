"""Stage one of mini: its LLaVA from random weights on generated scenes.

    python -m referent.mini.pretrain --artwork ... --out RUN --steps 2600 --dense-steps 1000

The first part supervises image features alone, on crowded scenes; then everything is trained. One trunk has two heads,
and each becomes a checkpoint of its kind: OUT/head, a box at [LOC], and OUT/referents, every referent.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copyfile

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import TrainingArguments, set_seed

from referent.core.bundle import TOKENIZER_FILE
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.mini import shape as mini
from referent.mini.expressions import training_expressions
from referent.mini.icons import Materials
from referent.mini.renewal import measure_norms, translate
from referent.mini.scenes import CLASSES, training_scene
from referent.mini.stream import ORDERS, RANKS, SceneStream, Stage
from referent.mini.tokenizer import train_tokenizer
from referent.mini.validation import (
    add_arguments,
    evaluate,
    judged,
    load_materials,
    of_one,
    validation_examples,
    validator,
)
from referent.modeling.checkpoint import (
    BASE_DIRECTORY,
    CheckpointSpec,
    load_checkpoint,
    load_checkpoint_encoder,
    load_checkpoint_spec,
    load_tokenizer,
    save_checkpoint,
)
from referent.modeling.grounder import HeadGrounder, ReferentGrounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead, ReferentHead
from referent.modeling.stem import ConvStemLlava
from referent.training.calibration import calibrate
from referent.training.losses import PRETRAINING, DenseSupervision, Objective
from referent.training.optimizer import MuonAndAdamW
from referent.training.trainer import GroundingTrainer, last_complete_checkpoint

WEIGHT_DECAY = 0.05
ROW = Bucket(mini.IMAGE_TOKENS + 88, 8)
HEADS = ("head", "referents")
NORM_IMAGES = 512  # which a restored base's batch norms are measured on
DENSE_BATCHES, DENSE_LEARNING_RATE = 150, 3e-3  # of the dense supervision of a restored base, alone
DENSE_MIX = {"photo": 0.12, "cut": 0.12, "icons": 0.12, "crowd": 0.64}
FULL_MIX = {"photo": 0.2, "cut": 0.14, "icons": 0.22, "crowd": 0.08, "alike": 0.22, "rows": 0.14}


def _words(materials: Materials) -> Iterator[str]:
    """What the tokenizer learns from: names, and expressions of scenes."""
    rng = random.Random(7)
    yield from (name for name in CLASSES for _ in range(30))
    for _ in tqdm(range(3000), desc="tokenizer"):
        scene = training_scene(rng, materials, FULL_MIX)
        said = training_expressions(rng, scene.names, scene.boxes, scene.image.size, CLASSES, ROW.expressions)
        yield from (expression.text for expression in said)


def _images(stream: SceneStream) -> Iterator[torch.Tensor]:
    """Batches of the images that training ends with."""
    last = range(max(0, len(stream) - NORM_IMAGES), len(stream))
    for first in tqdm(range(0, len(last), 32), desc="statistics of batch norms"):
        yield torch.stack([torch.as_tensor(stream[index]["image"]) for index in last[first : first + 32]])


def _fit_dense(objective: Objective, stream: SceneStream, batch_size: int, workers: int) -> None:
    """Train the dense supervision alone on the scenes that training ends with. No checkpoint has it, and with random
    weights its gradients cost the encoder a tenth of its IoU."""
    dense, model = objective.dense, objective.model.eval()
    assert dense is not None
    last = range(len(stream))[-DENSE_BATCHES * batch_size :]
    optimizer = torch.optim.AdamW(dense.parameters(), DENSE_LEARNING_RATE)
    progress = tqdm(DataLoader(Subset(stream, last), batch_size, num_workers=workers), desc="dense supervision")
    for batch in progress:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = model.encode_image(batch["image"])
        losses = dense.losses(model, features, batch)
        (losses["patch_class"] + losses["patch_rank"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        progress.set_postfix({key: f"{losses[key]:.2f}" for key in ("patch_accuracy", "rank_accuracy")})


def mini_spec() -> CheckpointSpec:
    """mini before any evaluation."""
    ids = {token: index for index, token in enumerate(mini.SPECIAL_TOKENS)}
    prompt = Prompt(
        template=mini.TEMPLATE, bos_token_id=ids["<s>"], pad_token_id=ids["<pad>"], image_token_id=ids["<image>"],
        loc_token_id=ids["[LOC]"],
    )  # fmt: skip
    return CheckpointSpec(
        image=mini.IMAGE, image_tokens=mini.IMAGE_TOKENS, box_frame="transformed", prompt=prompt,
        buckets=mini.BUCKETS, knows=mini.KNOWS, present_threshold=None, base=BASE_DIRECTORY, head_dropout=0.0,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--dense-steps", type=int, default=0, help="first steps, on image features alone")
    parser.add_argument("--eval-steps", type=int, default=500)
    parser.add_argument("--save-steps", type=int, default=500, help="between states to resume from")
    parser.add_argument("--base", type=Path, nargs="+", default=[], help="checkpoints of one trunk to go on from")
    parser.add_argument("--fresh-heads", action="store_true", help="do not go on with the base's heads")
    parser.add_argument("--heads", choices=("both", *HEADS), default="both", help="what is trained on the trunk")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    set_seed(arguments.seed)
    materials = load_materials(arguments, "train")
    tokenizer_file = arguments.out / TOKENIZER_FILE
    bases = [load_checkpoint(directory)[0] for directory in arguments.base]
    trunk = bases[0] if bases else None
    as_it_is = trunk is not None and trunk.base.config.text_config.vocab_size == mini.VOCABULARY_SIZE
    if not tokenizer_file.exists() and as_it_is:
        copyfile(arguments.base[0] / TOKENIZER_FILE, tokenizer_file)
    elif not tokenizer_file.exists():
        train_tokenizer(_words(materials), tokenizer_file)

    spec = mini_spec()
    encoder = load_checkpoint_encoder(arguments.out, spec)
    llava = ConvStemLlava(mini.mini_config()) if trunk is None else trunk.llava
    if trunk is not None and not as_it_is:
        llava = translate(llava, load_tokenizer(arguments.base[0]), load_tokenizer(arguments.out))
    hidden_size = llava.config.text_config.hidden_size
    kept = [] if arguments.fresh_heads else bases
    box_head = next((base.box_head for base in kept if base.box_head), None)
    referent_head = next((base.referent_head for base in kept if base.referent_head), None)
    model = GroundingModel(
        llava,
        None if arguments.heads == "referents" else box_head or BoxHead(hidden_size, spec.head_dropout),
        referent_head=None
        if arguments.heads == "head"
        else referent_head or ReferentHead(hidden_size, spec.image_tokens, 0.0),
    )
    referents_spec = spec.model_copy(update={"kind": "referents", "present_threshold": 0.5, "referent_threshold": 0.5})
    box = HeadGrounder(model, spec, encoder) if model.box_head else None
    referents = ReferentGrounder(model, referents_spec, encoder) if model.referent_head else None
    examples = validation_examples(arguments)
    objective = Objective(model, PRETRAINING, DenseSupervision(hidden_size, len(CLASSES), len(ORDERS), RANKS))
    stages = [
        Stage(arguments.dense_steps * arguments.batch, DENSE_MIX),
        Stage((arguments.steps - arguments.dense_steps) * arguments.batch, FULL_MIX),
    ]
    stream = SceneStream(materials, spec, encoder, CLASSES, stages, ROW, arguments.seed)
    resumed = last_complete_checkpoint(arguments.out)  # its norms are in its state
    if trunk is not None and not resumed and "restored" in load_checkpoint_spec(arguments.base[0]).training:
        measure_norms(model.eval(), _images(stream))
        _fit_dense(objective, stream, arguments.batch, arguments.workers)
    # Muon: 200 steps on, patches are told apart a third better than with AdamW alone (docs/experiments.md)
    optimizer = MuonAndAdamW(objective, arguments.learning_rate, WEIGHT_DECAY)
    workers = {"dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True} if arguments.workers else {}
    trainer = GroundingTrainer(
        objective,
        stream,
        validator(box, examples, referents),
        expressions_from_step=arguments.dense_steps,
        optimizers=(optimizer, None),
        args=TrainingArguments(
            output_dir=str(arguments.out), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
            max_grad_norm=1.0,
            warmup_steps=100, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.02},
            bf16=True, use_cpu=not torch.cuda.is_available(), logging_steps=50, report_to="tensorboard",
            save_steps=arguments.save_steps, save_total_limit=2, eval_strategy="steps",
            eval_steps=arguments.eval_steps, metric_for_best_model="mean_iou" if box else "f1",
            dataloader_num_workers=arguments.workers, **workers,
            remove_unused_columns=False, label_names=["boxes"], seed=arguments.seed,
        ),
    )  # fmt: skip
    if arguments.compile:
        objective.compile_steps()
    trainer.train(resume_from_checkpoint=resumed)
    model.eval()
    if box is not None:
        single = [example for subset in of_one(examples).values() for example in subset]
        spec = spec.model_copy(update={"present_threshold": evaluate(box, single)["present_threshold"]})
        save_checkpoint(arguments.out / "head", model, spec, tokenizer_file)
    if referents is not None:
        everything = [example for subset in examples.values() for example in subset]
        found = calibrate(model.referent_head, judged(referents, everything))
        print(json.dumps(found.figures))
        updates = {
            "present_threshold": found.present_threshold,
            "referent_threshold": found.referent_threshold,
            "training": {"validation": found.figures},
        }
        save_checkpoint(arguments.out / "referents", model, referents_spec.model_copy(update=updates), tokenizer_file)


if __name__ == "__main__":
    main()
