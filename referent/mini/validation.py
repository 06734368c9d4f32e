"""The data of mini's pre-training: its arguments, and validation on held-out scenes and photographs."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from referent.core.answers import Answer
from referent.evaluation.evaluate import join, summary
from referent.evaluation.predictions import prediction_of
from referent.mini.scenes import CLASSES, Materials
from referent.mini.sets import Example, card_photos, example_records, icon_scenes

VALIDATION_SCENES = 150


class Grounder(Protocol):
    """Image and expressions in, one result an expression out, in order."""

    def ground(self, image: Image.Image, expressions: Sequence[str]) -> Sequence[Answer]: ...


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


def validation_examples(arguments: argparse.Namespace) -> dict[str, list[Example]]:
    """Validation scenes and photographs."""
    materials = load_materials(arguments, "val")
    return {
        "scenes": list(icon_scenes(materials, CLASSES, VALIDATION_SCENES, "val", unseen_style=False)),
        "cards": list(card_photos(materials, CLASSES, "val")),
    }


def evaluate(grounder: Grounder, examples: Iterable[Example]) -> dict[str, Any]:
    """`summary` of what `grounder` finds."""
    records, predictions = [], []
    for index, example in enumerate(examples):
        about = list(example_records(example, str(index), "val", "validation"))
        answers = grounder.ground(example.image, [record.expression for record in about])
        records += about
        predictions += [prediction_of(record.id, answer) for record, answer in zip(about, answers, strict=True)]
    return summary(join(records, predictions))


def validator(grounder: Grounder, examples: dict[str, list[Example]]) -> Callable[[], dict[str, float]]:
    """Figures of each set; `mean_iou` is the mean of both."""

    def validate() -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, subset in examples.items():
            result = evaluate(grounder, subset)
            figures |= {f"{name}_{key}": result[key] for key in ("mean_iou", "acc@0.5", "auroc")}
        return figures | {"mean_iou": (figures["scenes_mean_iou"] + figures["cards_mean_iou"]) / 2}

    return validate
