"""What the experiment with visual position prompts starts from, in one step of each training."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from referent.mini import prompted
from referent.mini.artwork import load_artwork
from referent.modeling.checkpoint import load_checkpoint
from tests.support.annotations import NAMES


@pytest.fixture
def settings(materials_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    for name, value in {"NAMES": 2, "WORDY_SCENES": 50, "HELD_OUT": 2}.items():
        monkeypatch.setattr(prompted, name, value)
    artwork = tmp_path / "few.npz"
    prompted.write_artwork(Namespace(source=materials_folder / "artwork.npz", out=artwork, seed=0))
    return Namespace(
        artwork=artwork, backgrounds=None, cards=materials_folder / "cards", split=materials_folder / "split.csv",
        steps=1, dense_steps=0, batch=2, learning_rate=1e-3, seed=0,
    )  # fmt: skip


def test_each_cell_is_a_base_of_its_own(settings: Namespace, tmp_path: Path) -> None:
    runs = {name: Namespace(**vars(settings), out=tmp_path / name) for name in ("base", "detector")}
    for run in runs.values():
        run.out.mkdir()
    prompted.train_base(runs["base"])
    prompted.train_detector(runs["detector"])
    prompted.assemble(Namespace(base=tmp_path / "base", detector=tmp_path / "detector", out=tmp_path / "bases", seed=0))
    trained = torch.load(tmp_path / "detector" / "detector.pt", weights_only=True)
    for cell in ("global", "both", "both_untrained"):
        model, spec = load_checkpoint(tmp_path / "bases" / cell)
        assert (spec.image_tokens, model.has_detector) == ((94, True) if cell != "global" else (64, False))
        if model.has_detector:
            own = model.visual_prompts.detector.state_dict()
            same = all(torch.equal(own[name], tensor) for name, tensor in trained.items())
            assert same == (cell == "both")


def test_the_artwork_has_few_names_in_all_their_styles(settings: Namespace) -> None:
    drawn = {name for icons in load_artwork(settings.artwork).values() for name in icons}
    assert len(drawn) == 2
    assert drawn < set(NAMES)
