import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from PIL import Image

from referent.core.bundle import TOKENIZER_FILE
from referent.mini import pretrain, shape
from referent.mini.tokenizer import train_tokenizer
from referent.modeling.checkpoint import load_checkpoint, load_checkpoint_spec, save_checkpoint
from referent.modeling.grounder import HeadGrounder, ReferentGrounder, load_grounder
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.stem import ConvStemLlava


@pytest.fixture
def given(materials_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a short run of a small model, but for its steps; it leaves its checkpoints in tmp_path/run."""
    for name in ("backgrounds", "run"):
        (tmp_path / name).mkdir()
    train_tokenizer(["dog", "the cat", "leftmost pumpkin", "king card"], tmp_path / "run" / TOKENIZER_FILE)
    config = shape.mini_config()
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 2
    monkeypatch.setattr(shape, "mini_config", lambda: deepcopy(config))
    folders = {
        "artwork": materials_folder / "artwork.npz", "backgrounds": tmp_path / "backgrounds",
        "cards": materials_folder / "cards", "split": materials_folder / "split.csv", "out": tmp_path / "run",
    }  # fmt: skip
    numbers = {"dense-steps": 1, "batch": 1, "workers": 0, "eval-steps": 2, "save-steps": 2, "validation-scenes": 4}
    return ["--no-compile", *(f"--{name}={value}" for name, value in (folders | numbers).items())]


@pytest.fixture
def run(given: list[str], tmp_path: Path) -> Path:
    """A run of two steps, and the same goes on to the fourth."""
    for steps in (2, 4):
        pretrain.main([*given, f"--steps={steps}"])
    return tmp_path / "run"


def test_a_run_starts_from_a_restored_model_of_another_vocabulary(given: list[str], tmp_path: Path) -> None:
    config = shape.mini_config()
    config.text_config.vocab_size += 10
    spec = pretrain.mini_spec().model_copy(update={"training": {"restored": "sha256:0"}})
    before = GroundingModel(ConvStemLlava(config), BoxHead(256, spec.head_dropout))
    save_checkpoint(tmp_path / "base", before, spec, tmp_path / "run" / TOKENIZER_FILE)
    pretrain.main([*given, f"--base={tmp_path / 'base'}", "--steps=2", "--learning-rate=0"])  # nothing is learnt
    after, _ = load_checkpoint(tmp_path / "run" / "head")
    weights, learnt = before.state_dict(), after.state_dict()
    rows = "llava.lm_head.weight"
    assert len(learnt[rows]) == len(weights[rows]) - 10
    loc = spec.prompt.loc_token_id
    assert torch.equal(learnt[rows][loc], weights[rows][loc])
    unchanged = [name for name in weights if "mlp" in name or ".layers.0.weight" in name]
    assert all(torch.equal(learnt[name], weights[name]) for name in unchanged)
    means = [name for name in weights if name.endswith("running_mean")]
    assert all((learnt[name] != weights[name]).any() for name in means)  # measured


def test_a_run_starts_from_both_heads_of_a_run(run: Path, given: list[str], tmp_path: Path) -> None:
    again = tmp_path / "again"
    bases = ["--base", *(str(run / kind) for kind in ("head", "referents"))]
    pretrain.main([*given, f"--out={again}", *bases, "--steps=2", "--learning-rate=0"])
    for kind, layer in (("head", "box_head.score.weight"), ("referents", "referent_head.query.weight")):
        before, after = (load_checkpoint(folder / kind)[0].state_dict() for folder in (run, again))
        assert torch.equal(before[layer], after[layer])


def test_a_run_goes_on_and_leaves_a_checkpoint_of_each_kind(run: Path) -> None:
    history = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "eval_scenes_f1" in line] == [2, 4]  # one history
    box, referents = (load_grounder(run / name, device="cpu") for name in ("head", "referents"))
    assert (type(box), type(referents)) == (HeadGrounder, ReferentGrounder)
    spec = load_checkpoint_spec(run / "referents")
    assert 0 <= spec.referent_threshold <= 1
    image = Image.effect_noise((200, 100), 60).convert("RGB")
    (guess,), (answer,) = box.ground(image, ["the dog"]), referents.ground(image, ["the dog"])
    assert guess.box_xyxy is not None
    assert answer.present == bool(answer.referents)
