"""Read mini's test sets, once, and write the figures into its checkpoint.

    python -m referent.evaluation CHECKPOINT --artwork ... --cards ... --split ...

Test scenes and photographs were seen neither in training nor when a checkpoint was chosen.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from referent.data.scenes import CLASSES, Materials
from referent.evaluation.evaluate import CentreBox, evaluate
from referent.evaluation.sets import Item, card_photos, icon_scenes
from referent.modeling.checkpoint import SPEC_FILE, load_checkpoint, load_checkpoint_encoder
from referent.modeling.grounder import TorchGrounder
from referent.processor import Processor

TEST_SCENES = 400


def read_sets(materials: Materials) -> dict[str, list[Item]]:
    """The three test sets."""
    return {
        "cards": list(card_photos(materials, CLASSES, "test")),
        "scenes": list(icon_scenes(materials, CLASSES, TEST_SCENES, "test", unseen_style=False)),
        "unseen_style": list(icon_scenes(materials, CLASSES, TEST_SCENES, "test", unseen_style=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--artwork", type=Path, required=True)
    parser.add_argument("--cards", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    arguments = parser.parse_args()
    model, spec = load_checkpoint(arguments.checkpoint)
    grounder = TorchGrounder(model, Processor(spec, load_checkpoint_encoder(arguments.checkpoint, spec)))
    materials = Materials.load(arguments.artwork, None, arguments.cards, arguments.split, "test")
    figures: dict[str, Any] = {}
    table = Table("set", "n", "mean IoU", "acc@0.5", "AUROC", "several ranks", "centre box", "whole image")
    for name, items in read_sets(materials).items():
        found = evaluate(grounder, tqdm(items, desc=name))
        del found["present_threshold"]  # chosen on validation data, not here
        baselines = {"centre box": CentreBox(0.4), "whole image": CentreBox(1.0)}
        found["baselines"] = {
            baseline: {key: evaluate(constant, items)[key] for key in ("mean_iou", "acc@0.5")}
            for baseline, constant in baselines.items()
        }
        figures[name] = found
        numbers = (
            found["mean_iou"],
            found["acc@0.5"],
            found["auroc"],
            found["acc@0.5 by kind"].get("name among several ranks"),
            *(values["acc@0.5"] for values in found["baselines"].values()),
        )
        table.add_row(name, str(found["n"]), *("" if number is None else f"{number:.3f}" for number in numbers))
    Console().print(table)
    print(json.dumps(figures, indent=2))
    updated = spec.model_copy(update={"evaluation": figures})
    (arguments.checkpoint / SPEC_FILE).write_text(updated.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
