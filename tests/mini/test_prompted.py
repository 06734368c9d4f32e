"""What the experiment with visual position prompts starts from, in one step of the detector's training."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from referent.mini import prompted
from referent.mini.pretrain import mini_spec
from referent.mini.shape import IMAGE_TOKENS, WIDTH, mini_config
from referent.mini.tokenizer import train_tokenizer
from referent.modeling.checkpoint import load_checkpoint, save_checkpoint
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.stem import ConvStemLlava
from tests.support.annotations import NAMES


def test_each_cell_is_a_base_of_its_own(
    materials_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GroundingModel(ConvStemLlava(mini_config()), BoxHead(WIDTH, 0.0))
    train_tokenizer(NAMES, tmp_path / "tokenizer.json")
    save_checkpoint(tmp_path / "base", model, mini_spec(), tmp_path / "tokenizer.json")
    monkeypatch.setattr(prompted, "HELD_OUT", 2)
    run = Namespace(
        artwork=materials_folder / "artwork.npz", backgrounds=None, cards=materials_folder / "cards",
        split=materials_folder / "split.csv", out=tmp_path / "detector", steps=1, batch=2, learning_rate=1e-3, seed=0,
    )  # fmt: skip
    run.out.mkdir()
    prompted.train_detector(run)
    prompted.assemble(Namespace(base=tmp_path / "base", detector=run.out, out=tmp_path / "bases", seed=0))
    trained = torch.load(run.out / "detector.pt", weights_only=True)
    for cell in ("global", "both", "both_untrained"):
        model, spec = load_checkpoint(tmp_path / "bases" / cell)
        queries = 0 if cell == "global" else 30
        assert (spec.image_tokens, model.has_detector) == (IMAGE_TOKENS + queries, queries > 0)
        if model.has_detector:
            own = model.visual_prompts.detector.state_dict()
            same = all(torch.equal(own[name], tensor) for name, tensor in trained.items())
            assert same == (cell == "both")
