import copy

import pytest
import torch

from referent.mini.shape import IMAGE_TOKENS, mini_config
from referent.mini.stream import ORDERS, RANKS, SceneStream
from referent.modeling.grounding import GroundingModel
from referent.modeling.heads import BoxHead, ReferentHead
from referent.modeling.stem import ConvStemLlava
from referent.training.encoding import collate
from referent.training.losses import FIGURES, PRETRAINING, DenseSupervision, Objective
from referent.training.optimizer import MuonAndAdamW
from tests.support.tiny import TINY_PROMPT
from tests.support.training import NAMES


@pytest.fixture
def objective() -> Objective:
    torch.manual_seed(0)
    config = mini_config()
    config.image_token_id = TINY_PROMPT.image_token_id
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 1, 2
    referent_head = ReferentHead(256, IMAGE_TOKENS, dropout=0.0)
    model = GroundingModel(ConvStemLlava(config), BoxHead(256, dropout=0.0), referent_head=referent_head)
    return Objective(model, PRETRAINING, DenseSupervision(256, len(NAMES), len(ORDERS), RANKS)).train()


@pytest.fixture(scope="module")
def batch(stream: SceneStream) -> dict[str, torch.Tensor]:
    return collate([stream[index] for index in range(4)])


def step(objective: Objective, optimizer: MuonAndAdamW, batch: dict[str, torch.Tensor]) -> float:
    loss = objective(**batch)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_steps_lower_every_part_of_the_loss_of_their_batch(
    objective: Objective, batch: dict[str, torch.Tensor]
) -> None:
    optimizer = MuonAndAdamW(objective, 1e-3, 0.0)
    first = {name: value.item() for name, value in objective(**batch).items()}
    for _ in range(10):
        step(objective, optimizer, batch)
    last = {name: value.item() for name, value in objective(**batch).items()}
    assert {
        "box",
        "score",
        "point",
        "token",
        "token_box",
        "presence",
        "patch_class",
        "patch_rank",
        "patch_box",
    } <= first.keys()
    higher = {name: (first[name], last[name]) for name in first.keys() - set(FIGURES) if last[name] >= first[name]}
    assert not higher


def test_an_expression_of_several_trains_tokens_and_not_the_one_box(
    objective: Objective, batch: dict[str, torch.Tensor]
) -> None:
    several = batch | {"single": torch.zeros_like(batch["single"]), "used": batch["present"]}
    parts = objective(**several)
    assert (parts["box"], parts["score"]) == (0, 0)
    parts["loss"].backward()
    assert objective.model.box_head.score.weight.grad is None or not objective.model.box_head.score.weight.grad.any()
    assert objective.model.referent_head.query.weight.grad.any()


def test_boxes_at_tokens_are_trained_before_the_language_model(
    objective: Objective, batch: dict[str, torch.Tensor]
) -> None:
    objective.expressions = False
    parts = objective(**batch)
    assert parts.keys() == {
        "loss", "token_box", "patch_class", "patch_box", "patch_rank", "patch_accuracy", "rank_accuracy",
    }  # fmt: skip
    parts["loss"].backward()
    assert objective.model.referent_head.mlp[-1].weight.grad.any()


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
