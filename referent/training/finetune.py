"""Stage two of mini, the published recipe: LoRA on the language model and the box head, everything else frozen.

python -m referent.training.finetune --base BASE_CHECKPOINT --artwork ... --out RUN --steps 250
"""

import argparse
import math
import subprocess
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from referent.bundle import TOKENIZER_FILE
from referent.data.scenes import CLASSES
from referent.evaluation.evaluate import evaluate
from referent.modeling.checkpoint import load_checkpoint, load_checkpoint_encoder, save_checkpoint
from referent.modeling.grounder import TorchGrounder
from referent.processor import Processor
from referent.training.losses import Objective
from referent.training.pretrain import ROW
from referent.training.samples import SceneStream, Stage
from referent.training.scenes import add_arguments, load_materials, validation_items, validator
from referent.training.trainer import GroundingTrainer

MIX = {"photo": 0.35, "cut": 0.15, "icons": 0.4, "crowd": 0.1}
TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q|k|v)_proj"  # CLIP has modules of these names too


def lora_config(loc_token_id: int | None) -> LoraConfig:
    """visual-grounding-api's adapter; [LOC]'s own embedding is trained where it is a token."""
    trained_tokens = None if loc_token_id is None else {"embed_tokens": [loc_token_id]}
    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS, trainable_token_indices=trained_tokens
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--base", type=Path, required=True, help="checkpoint of referent.training.pretrain")
    parser.add_argument("--eval-steps", type=int, default=200)
    arguments = parser.parse_args()
    set_seed(arguments.seed)
    model, spec = load_checkpoint(arguments.base, trainable=True)
    encoder = load_checkpoint_encoder(arguments.base, spec)
    for parameter in model.llava.parameters():
        parameter.requires_grad = False
    model.llava = get_peft_model(model.llava, lora_config(spec.prompt.loc_token_id))
    grounder, validation = TorchGrounder(model, Processor(spec, encoder)), validation_items(arguments)
    objective = Objective(model, dense=None)
    stages = [Stage(arguments.steps * arguments.batch, MIX)]
    trainer = GroundingTrainer(
        objective,
        SceneStream(load_materials(arguments, "train"), spec, encoder, CLASSES, stages, ROW, arguments.seed + 1),
        validator(grounder, validation),
        args=TrainingArguments(
            output_dir=str(arguments.out), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
            learning_rate=arguments.learning_rate, weight_decay=0.0, max_grad_norm=1.0,
            warmup_steps=30, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.02},
            bf16=True, use_cpu=not torch.cuda.is_available(), logging_steps=25, report_to="tensorboard",
            save_steps=arguments.eval_steps, save_total_limit=2, eval_strategy="steps",
            eval_steps=arguments.eval_steps, metric_for_best_model="eval_mean_iou", load_best_model_at_end=True,
            dataloader_num_workers=arguments.workers, dataloader_prefetch_factor=4, dataloader_persistent_workers=True,
            remove_unused_columns=False, label_names=["boxes"], seed=arguments.seed,
        ),
    )  # fmt: skip
    objective.compile_steps()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(arguments.out)))
    model.eval()

    figures = evaluate(grounder, [*validation["scenes"], *validation["cards"]])
    spec = spec.model_copy(
        update={
            "base": str((arguments.base / spec.base).resolve()),
            "present_threshold": math.floor(1000 * figures["present_threshold"]) / 1000,
            "training": {
                "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
                "recipe": "runs/mini.sh",
            },
        }
    )
    save_checkpoint(arguments.out / "checkpoint", model, spec, arguments.base / TOKENIZER_FILE)


if __name__ == "__main__":
    main()
