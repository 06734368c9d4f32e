"""Stage one of mini: its LLaVA from random weights on generated scenes.

    python -m referent.mini.pretrain --artwork ... --out RUN --steps 2600 --dense-steps 1000

The first part supervises image features alone, on crowded scenes; then everything is trained.
"""

import argparse
import random
from collections.abc import Iterator

import torch
from tqdm import tqdm
from transformers import TrainingArguments, set_seed

from referent.core.bundle import TOKENIZER_FILE
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.mini import shape as mini
from referent.mini.expressions import training_expressions
from referent.mini.scenes import CLASSES, Materials, make_scene
from referent.mini.stream import SceneStream, Stage
from referent.mini.tokenizer import train_tokenizer
from referent.mini.validation import add_arguments, load_materials, validation_examples, validator
from referent.modeling.checkpoint import BASE_DIRECTORY, CheckpointSpec, load_checkpoint_encoder, save_checkpoint
from referent.modeling.grounder import HeadGrounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.stem import ConvStemLlava
from referent.training.losses import PRETRAINING, DenseSupervision, Objective
from referent.training.optimizer import MuonAndAdamW
from referent.training.trainer import GroundingTrainer, last_complete_checkpoint

WEIGHT_DECAY = 0.05
ROW = Bucket(mini.IMAGE_TOKENS + 72, 8)
DENSE_MIX = {"photo": 0.12, "cut": 0.12, "icons": 0.12, "crowd": 0.64}
FULL_MIX = {"photo": 0.18, "cut": 0.13, "icons": 0.34, "crowd": 0.08, "alike": 0.14, "rows": 0.13}


def _words(materials: Materials, seed: int = 7) -> Iterator[str]:
    """What the tokenizer learns from: names, and expressions of scenes."""
    rng = random.Random(seed)
    yield from (name for name in CLASSES for _ in range(30))
    for _ in tqdm(range(3000), desc="tokenizer"):
        scene = make_scene(rng, materials, rng.choice(("icons", "alike")))
        for expression in training_expressions(
            rng, scene.names, scene.boxes, scene.image.size, CLASSES, ROW.expressions
        ):
            yield expression.text


def mini_spec() -> CheckpointSpec:
    """mini before any evaluation."""
    ids = {token: index for index, token in enumerate(mini.SPECIAL_TOKENS)}
    prompt = Prompt(
        template=mini.TEMPLATE, bos_token_id=ids["<s>"], pad_token_id=ids["<pad>"], image_token_id=ids["<image>"],
        loc_token_id=ids["[LOC]"],
    )  # fmt: skip
    return CheckpointSpec(
        image=mini.IMAGE, image_tokens=mini.IMAGE_TOKENS, box_frame="transformed", prompt=prompt,
        buckets=mini.BUCKETS, present_threshold=None, base=BASE_DIRECTORY, head_dropout=0.0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--dense-steps", type=int, required=True, help="first steps, on image features alone")
    parser.add_argument("--eval-steps", type=int, default=500)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    set_seed(arguments.seed)
    materials = load_materials(arguments, "train")
    tokenizer_file = arguments.out / TOKENIZER_FILE
    if not tokenizer_file.exists():
        train_tokenizer(_words(materials), tokenizer_file)

    spec = mini_spec()
    encoder = load_checkpoint_encoder(arguments.out, spec)
    model = GroundingModel(ConvStemLlava(mini.mini_config()), BoxHead(256, spec.head_dropout))
    hidden_size = model.base.config.text_config.hidden_size
    objective = Objective(model, PRETRAINING, DenseSupervision(hidden_size, len(CLASSES)))
    stages = [
        Stage(arguments.dense_steps * arguments.batch, DENSE_MIX),
        Stage((arguments.steps - arguments.dense_steps) * arguments.batch, FULL_MIX),
    ]
    # Muon: 200 steps on, patches are told apart a third better than with AdamW alone (docs/experiments.md)
    optimizer = MuonAndAdamW(objective, arguments.learning_rate, WEIGHT_DECAY)
    trainer = GroundingTrainer(
        objective,
        SceneStream(materials, spec, encoder, CLASSES, stages, ROW, arguments.seed),
        validator(HeadGrounder(model, spec, encoder), validation_examples(arguments)),
        expressions_from_step=arguments.dense_steps,
        optimizers=(optimizer, None),
        args=TrainingArguments(
            output_dir=str(arguments.out), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
            max_grad_norm=1.0,
            warmup_steps=100, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.02},
            bf16=True, use_cpu=not torch.cuda.is_available(), logging_steps=50, report_to="tensorboard", save_steps=500,
            save_total_limit=2, eval_strategy="steps", eval_steps=arguments.eval_steps,
            dataloader_num_workers=arguments.workers, dataloader_prefetch_factor=4, dataloader_persistent_workers=True,
            remove_unused_columns=False, label_names=["boxes"], seed=arguments.seed,
        ),
    )  # fmt: skip
    objective.compile_steps()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(arguments.out))
    save_checkpoint(arguments.out / "checkpoint", model, spec, tokenizer_file)


if __name__ == "__main__":
    main()
