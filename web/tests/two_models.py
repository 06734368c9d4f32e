"""A model repository with two models to compare: mini, and its weights again as `strict`, which takes less for there.

PYTHONPATH=. python web/tests/two_models.py FOLDER
"""

import shutil
import sys
import tempfile
from pathlib import Path

from export.publish import publish
from referent.core.bundle import CONFIG_FILE, TOKENIZER_FILE, load_bundle
from referent.core.contract import part_name
from referent.kinds import kind_of

SHIPPED = Path(__file__).parents[2] / "model_repository"
THRESHOLD = 0.8
HIDDEN_SIZE, MAX_BATCH_SIZE = 256, 8  # as mini's config.pbtxt


def main(repository: Path) -> None:
    shutil.copytree(SHIPPED, repository)
    bundle, _ = load_bundle(SHIPPED, "mini")
    with tempfile.TemporaryDirectory() as folder:  # publishing moves the files that it is given
        parts = {}
        for step in kind_of(bundle).steps:
            published = SHIPPED / part_name("mini", step) / bundle.version
            parts[step.suffix] = Path(folder, step.suffix)
            shutil.copytree(published, parts[step.suffix], ignore=shutil.ignore_patterns(CONFIG_FILE))
        publish(
            repository,
            "strict",
            bundle.model_copy(update={"present_threshold": THRESHOLD}),
            parts,
            SHIPPED / "mini" / bundle.version / TOKENIZER_FILE,
            dtype=bundle.dtype,
            has_scores=bundle.has_scores,
            sizes={"D": HIDDEN_SIZE},
            max_batch_size=MAX_BATCH_SIZE,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
