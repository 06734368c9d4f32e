"""Constants of the tiny model that tests build, and the models that are shipped."""

import shutil
from pathlib import Path

from referent.core.grammar import BoxGrammar, Generation
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.core.transform import ImageTransform

SPECIAL_TOKENS = ["<pad>", "<unk>", "<s>", "<image>", "[LOC]"]
WORDS = ["find", "the", "red", "green", "blue", "cup", "plate", "on", "left", "right", "of", "image", "LOC"]
TINY_IMAGE = ImageTransform(mode="letterbox", size=28)
TINY_IMAGE_TOKENS = 4
TINY_BUCKETS = (Bucket(16, 1), Bucket(32, 2), Bucket(64, 4))
TINY_PROMPT = Prompt(
    template="<image>find {expression}[LOC]", bos_token_id=2, pad_token_id=0, image_token_id=3, loc_token_id=4
)
TINY_GENERATION = Generation(grammar=BoxGrammar(order="cxcywh", decimals=3, lead=" "), eos_token_id=1)
MODEL_REPOSITORY = Path(__file__).parents[2] / "model_repository"


def copy_mini(target: Path) -> Path:
    """A copy of the shipped repository with mini alone: the other models take a server's time and memory."""
    for folder in (MODEL_REPOSITORY / "mini", *MODEL_REPOSITORY.glob("mini_*")):
        shutil.copytree(folder, target / folder.name)
    return target
