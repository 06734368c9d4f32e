"""The data of mini's pre-training: its arguments, and validation on held-out scenes and photographs."""

import argparse
from collections.abc import Callable
from pathlib import Path

from referent.evaluation.evaluate import evaluate
from referent.evaluation.predictors import Grounder
from referent.mini.scenes import CLASSES, Materials
from referent.mini.sets import Item, card_photos, icon_scenes

VALIDATION_SCENES = 150


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data is, and how long to train."""
    parser.add_argument("--artwork", type=Path, required=True, help="artwork.npz of referent.mini.artwork")
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of background photographs")
    parser.add_argument("--cards", type=Path, required=True, help="folder of card photographs with labels.csv")
    parser.add_argument("--split", type=Path, required=True, help="csv of referent.mini.cards")
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints go; a run found there is resumed")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def load_materials(arguments: argparse.Namespace, split: str) -> Materials:
    """Training has background photographs, held-out splits do not: theirs would not be unseen."""
    backgrounds = arguments.backgrounds if split == "train" else None
    return Materials.load(arguments.artwork, backgrounds, arguments.cards, arguments.split, split)


def validation_items(arguments: argparse.Namespace) -> dict[str, list[Item]]:
    """Validation scenes and photographs."""
    materials = load_materials(arguments, "val")
    return {
        "scenes": list(icon_scenes(materials, CLASSES, VALIDATION_SCENES, "val", unseen_style=False)),
        "cards": list(card_photos(materials, CLASSES, "val")),
    }


def validator(grounder: Grounder, items: dict[str, list[Item]]) -> Callable[[], dict[str, float]]:
    """Figures of each set; `mean_iou` is the mean of both."""

    def validate() -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, subset in items.items():
            result = evaluate(grounder, subset)
            figures |= {f"{name}_{key}": result[key] for key in ("mean_iou", "acc@0.5", "auroc")}
        return figures | {"mean_iou": (figures["scenes_mean_iou"] + figures["cards_mean_iou"]) / 2}

    return validate
