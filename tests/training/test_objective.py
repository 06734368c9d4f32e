import copy

import pytest
import torch

from referent.mini.shape import mini_config
from referent.mini.stream import SceneStream
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead
from referent.modeling.stem import ConvStemLlava
from referent.training.encoding import collate
from referent.training.losses import PRETRAINING, DenseSupervision, Objective
from referent.training.optimizer import MuonAndAdamW
from tests.support.tiny import TINY_PROMPT
from tests.support.training import NAMES


@pytest.fixture
def objective() -> Objective:
    torch.manual_seed(0)
    config = mini_config()
    config.image_token_id = TINY_PROMPT.image_token_id
    model = GroundingModel(ConvStemLlava(config), BoxHead(256, dropout=0.0))
    return Objective(model, PRETRAINING, DenseSupervision(256, len(NAMES))).train()


@pytest.fixture(scope="module")
def batch(stream: SceneStream) -> dict[str, torch.Tensor]:
    return collate([stream[index] for index in range(4)])


def step(objective: Objective, optimizer: MuonAndAdamW, batch: dict[str, torch.Tensor]) -> float:
    loss = objective(**batch)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_steps_lower_the_loss_of_their_batch(objective: Objective, batch: dict[str, torch.Tensor]) -> None:
    optimizer = MuonAndAdamW(objective, 1e-3, 0.0)
    losses = [step(objective, optimizer, batch) for _ in range(4)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_restored_optimizer_goes_on_as_the_first_would_have(
    objective: Objective, batch: dict[str, torch.Tensor]
) -> None:
    optimizer = MuonAndAdamW(objective, 1e-3, 0.05)
    step(objective, optimizer, batch)
    weights = {name: value.clone() for name, value in objective.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    step(objective, optimizer, batch)
    expected = objective.model.box_head.mlp[0].weight.clone()

    objective.load_state_dict(weights)
    restored = MuonAndAdamW(objective, 1e-3, 0.05)
    restored.load_state_dict(state)
    step(objective, restored, batch)
    torch.testing.assert_close(objective.model.box_head.mlp[0].weight, expected)
    restored.param_groups[0]["lr"] = 0.0  # what a schedule sets must reach the parts
    assert restored._parts[0].param_groups[0]["lr"] == 0.0


def test_a_frozen_tower_keeps_its_statistics(objective: Objective, batch: dict[str, torch.Tensor]) -> None:
    tower = objective.model.base.model.vision_tower.requires_grad_(False)
    before = {name: value.clone() for name, value in tower.named_buffers()}
    objective.train()(**batch)
    assert all((value == before[name]).all() for name, value in tower.named_buffers())
    tower.requires_grad_(True)
    objective.train()(**batch)  # the control
    assert any((value != before[name]).any() for name, value in tower.named_buffers())
