"""The data of mini's pre-training: its arguments, and validation on held-out scenes and photographs."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from referent.core.answers import Answer
from referent.evaluation.evaluate import join, summary
from referent.evaluation.metrics import auroc
from referent.evaluation.predictions import prediction_of
from referent.evaluation.several import score_order_matches
from referent.mini.artwork import VALIDATION_STYLE
from referent.mini.icons import Materials
from referent.mini.scenes import CLASSES
from referent.mini.sets import (
    Example,
    card_photo,
    example_records,
    icon_scene,
    several_card_photo,
    several_scene,
)
from referent.modeling.grounder import ReferentGrounder
from referent.training.calibration import Judged, best_f1

BOX_FIGURES = ("mean_iou", "acc@0.5", "auroc")


class Grounder(Protocol):
    """Takes an image and expressions; returns an answer for each expression, in order."""

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
    parser.add_argument("--validation-scenes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)


def load_materials(arguments: argparse.Namespace, split: str) -> Materials:
    """Only training has background photographs: in held-out splits they would not be unseen."""
    backgrounds = arguments.backgrounds if split == "train" else None
    return Materials.load(arguments.artwork, backgrounds, arguments.cards, arguments.split, split)


def validation_examples(arguments: argparse.Namespace) -> dict[str, list[Example]]:
    """Scenes, also in a style that is never trained on, and photographs; then such with expressions for several."""
    materials, count = load_materials(arguments, "val"), range(arguments.validation_scenes)
    photos = range(len(materials.photos))
    return {
        "scenes": [icon_scene(materials, index, CLASSES, "val") for index in count],
        "unseen": [icon_scene(materials, index, CLASSES, "val", (VALIDATION_STYLE,)) for index in count],
        "cards": [card_photo(materials, index, CLASSES, "val") for index in photos],
        "several": [several_scene(materials, index, CLASSES, "val") for index in count],
        "several_cards": [several_card_photo(materials, index, CLASSES, "val") for index in photos],
    }


def of_one(examples: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """The sets whose expressions mean one object or none."""
    return {
        name: subset
        for name, subset in examples.items()
        if not any(expression.several for example in subset for expression in example.expressions)
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


def judged(grounder: ReferentGrounder, examples: Iterable[Example]) -> list[Judged]:
    """All candidates of the referent head for each expression, with the true boxes."""
    found = []
    for example in examples:
        about = list(example_records(example, "", "val", "validation"))
        candidates = grounder.candidates(example.image, [record.expression for record in about])
        for record, given in zip(about, candidates, strict=True):
            found.append(Judged(given, np.array(record.boxes, np.float64).reshape(-1, 4)))
    return found


def validator(
    grounder: Grounder | None, examples: dict[str, list[Example]], referents: ReferentGrounder | None = None
) -> Callable[[], dict[str, float]]:
    """Figures of each set: of `grounder`'s boxes for expressions that mean one object, and of `referents` for all, at
    the best threshold of each set. `mean_iou` and `f1` are the means over the sets."""

    def validate() -> dict[str, float]:
        figures: dict[str, float] = {}
        if grounder is not None:
            results = {name: evaluate(grounder, subset) for name, subset in of_one(examples).items()}
            for name, result in results.items():
                figures |= {f"{name}_{key}": result[key] for key in BOX_FIGURES if result.get(key) is not None}
            figures["mean_iou"] = float(np.mean([figures[f"{name}_mean_iou"] for name in results]))
        if referents is not None:
            for name, subset in examples.items():
                figures |= {f"{name}_{key}": value for key, value in several_at_best(judged(referents, subset)).items()}
            figures["f1"] = float(np.mean([figures[f"{name}_f1"] for name in examples]))
        return figures

    return validate


def several_at_best(found: Sequence[Judged]) -> dict[str, float]:
    """F1 over all referents at its best threshold, and how well presence separates present from absent."""
    scores = np.concatenate([given.scores for given, _ in found])
    right = np.concatenate([score_order_matches(given.boxes_xyxy, true) for given, true in found])
    told = auroc(np.array([given.presence for given, _ in found]), np.array([len(true) > 0 for _, true in found]))
    f1 = best_f1(scores, right, sum(len(true) for _, true in found))[1]
    return {"f1": f1} if told is None else {"f1": f1, "presence_auroc": told}
