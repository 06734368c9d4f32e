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
from tests.support.tiny import MODEL_REPOSITORY, copy_mini

THRESHOLD = 0.8
HIDDEN_SIZE, MAX_BATCH_SIZE = 256, 8  # as mini's config.pbtxt


def main(repository: Path) -> None:
    copy_mini(repository)
    bundle, _ = load_bundle(MODEL_REPOSITORY, "mini")
    with tempfile.TemporaryDirectory() as folder:  # publishing moves the files that it is given
        parts = {}
        for step in kind_of(bundle).steps:
            published = MODEL_REPOSITORY / part_name("mini", step) / bundle.version
            parts[step.suffix] = Path(folder, step.suffix)
            shutil.copytree(published, parts[step.suffix], ignore=shutil.ignore_patterns(CONFIG_FILE))
        publish(
            repository,
            "strict",
            bundle.model_copy(update={"present_threshold": THRESHOLD}),
            parts,
            MODEL_REPOSITORY / "mini" / bundle.version / TOKENIZER_FILE,
            dtype=bundle.dtype,
            weights=bundle.weights,
            has_scores=bundle.has_scores,
            sizes={"D": HIDDEN_SIZE},
            max_batch_size=MAX_BATCH_SIZE,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
