"""A tiny model of kind `referents` through the real tritonserver and the real gateway."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.build import export
from referent.client.http import Client
from referent.core.answers import Answer
from referent.modeling.grounder import ReferentGrounder, load_grounder
from referent.triton.client import TritonClient
from runtime.launcher import TritonServer
from tests.support.load import gateway
from tests.support.several import save_referents_checkpoint

EXPRESSIONS = ["the red cup", "blue plates on the left", "cup", "find", "green"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("several") / "checkpoint"
    save_referents_checkpoint(tiny_checkpoint, directory)
    return directory


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    export(checkpoint, "several", repository)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def client(repository: Path, server: TritonServer) -> Iterator[Client]:
    with gateway(repository, server.grpc_url, default_model="several") as url, Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def grounder(checkpoint: Path) -> ReferentGrounder:
    grounder = load_grounder(checkpoint, "cpu")
    assert isinstance(grounder, ReferentGrounder)
    return grounder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def same(one: Answer, other: Answer, pixels: float = 1.0) -> None:
    assert (one.present, len(one.referents)) == (other.present, len(other.referents))
    for a, b in zip(one.referents, other.referents, strict=True):
        np.testing.assert_allclose(a.box_xyxy, b.box_xyxy, atol=pixels)
        assert a.score == pytest.approx(b.score, abs=1e-3)


@pytest.mark.parametrize("size", [(60, 40), (300, 900), (31, 7)], ids=str)
def test_every_referent_is_served_as_pytorch_finds_it(
    client: Client, grounder: ReferentGrounder, size: tuple[int, int]
) -> None:
    image = noise(*size)
    served = client.ground(image, EXPRESSIONS).results
    for answer, local in zip(served, grounder.ground(image, EXPRESSIONS), strict=True):
        same(answer, local)
        assert answer.heatmap is None
        scores = [referent.score for referent in answer.referents]
        assert scores == sorted(scores, reverse=True)
    assert any(len(answer.referents) > 1 for answer in served) or size == (31, 7)  # most tokens show its padding


def test_an_expression_gets_what_it_gets_alone_and_beside_other_images(client: Client) -> None:
    images = [noise(60, 40, seed) for seed in range(4)]
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(lambda image: client.ground(image, EXPRESSIONS).results, images))
    for image, packed in zip(images, together, strict=True):
        same(packed[1], client.ground(image, EXPRESSIONS[1]).results[0], 0.05)


def test_a_request_may_limit_the_referents_and_ask_for_a_heat_map(client: Client, grounder: ReferentGrounder) -> None:
    image = noise(60, 40)
    whole, limited = (client.ground(image, EXPRESSIONS, max_instances=n, heatmap=True).results for n in (None, 1))
    for full, one, local in zip(whole, limited, grounder.ground(image, EXPRESSIONS), strict=True):
        assert one.referents == full.referents[:1]
        assert np.shape(full.heatmap) == (2, 2)
        np.testing.assert_allclose(full.heatmap_xyxy, (0, -10, 60, 50), atol=2.5)  # the letterbox's square
        assert np.max(full.heatmap) == pytest.approx(local.referents[0].score, abs=1e-3)


def test_triton_itself_may_be_asked(repository: Path, server: TritonServer, client: Client) -> None:
    image = noise(60, 40)
    with TritonClient(server.grpc_url, "several", repository) as direct:
        found = direct.ground(image, EXPRESSIONS, heatmap=True).results
    for answer, other in zip(found, client.ground(image, EXPRESSIONS, heatmap=True).results, strict=True):
        same(answer, other, 0.05)
        np.testing.assert_allclose(answer.heatmap, other.heatmap, atol=1e-3)


def test_the_service_says_what_it_can(client: Client) -> None:
    (model,) = client.models()
    assert (model.kind, model.gives, model.several, model.heatmaps) == ("referents", "boxes", True, True)
