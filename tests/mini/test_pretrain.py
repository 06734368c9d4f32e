import json
from pathlib import Path

import pytest
from PIL import Image

from referent.core.bundle import TOKENIZER_FILE
from referent.mini import pretrain, shape
from referent.mini.tokenizer import train_tokenizer
from referent.modeling.checkpoint import load_checkpoint_spec
from referent.modeling.grounder import HeadGrounder, ReferentGrounder, load_grounder


@pytest.fixture
def run(materials_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two steps, and the same goes on to the fourth."""
    for name in ("backgrounds", "run"):
        (tmp_path / name).mkdir()
    train_tokenizer(["dog", "the cat", "leftmost pumpkin", "king card"], tmp_path / "run" / TOKENIZER_FILE)
    config = shape.mini_config()
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 2
    monkeypatch.setattr(shape, "mini_config", lambda: config)
    folders = {
        "artwork": materials_folder / "artwork.npz", "backgrounds": tmp_path / "backgrounds",
        "cards": materials_folder / "cards", "split": materials_folder / "split.csv", "out": tmp_path / "run",
    }  # fmt: skip
    numbers = {"dense-steps": 1, "batch": 1, "workers": 0, "eval-steps": 2, "save-steps": 2, "validation-scenes": 4}
    given = [f"--{name}={value}" for name, value in (folders | numbers).items()]
    for steps in (2, 4):
        pretrain.main([*given, f"--steps={steps}", "--no-compile"])
    return tmp_path / "run"


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
