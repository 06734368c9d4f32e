"""VPP-LLaVA, imported, exported and asked through the real tritonserver and the real gateway."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export.build import export
from referent.client.http import Client
from referent.core.bundle import load_bundle
from referent.kinds import kind_of
from referent.modeling.grounder import load_grounder
from referent.modeling.importers.vpp_llava import import_vpp_llava
from runtime.launcher import TritonServer
from tests.support.load import gateway


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "vpp"


@pytest.fixture(scope="module")
def cases(golden: Path) -> list[dict]:
    """Those whose expression an encoder leaves as it is: white space in the third is made one."""
    return json.loads((golden / "constrained.json").read_text())["cases"][:2]


@pytest.fixture(scope="module")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "vpp"
    import_vpp_llava(golden / "llava-vpp-tiny", out, golden / "clip-stock-tiny-336")
    return out


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    export(checkpoint, "vpp", repository)
    return repository


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[Client]:
    with (
        TritonServer(repository) as server,
        gateway(repository, server.grpc_url, default_model="vpp") as url,
        Client(url) as client,
    ):
        yield client


def test_the_ensemble_takes_the_second_picture(repository: Path) -> None:
    bundle, _ = load_bundle(repository, "vpp")
    names = [tensor.name for tensor in kind_of(bundle).inputs]
    assert names[-2:] == ["detector_image", "detector_frame"]
    config = (repository / "vpp" / "config.pbtxt").read_text()
    assert 'key: "detector_frame"' in config


def test_served_answers_are_those_of_the_original(client: Client, golden: Path, cases: list[dict]) -> None:
    for case in cases:
        (result,) = client.ground(golden / case["image"], case["expression"]).results
        wanted = case["answer"]
        assert (result.text, result.finish_reason) == (wanted["text"], "stop")
        assert result.score == pytest.approx(wanted["score"], rel=2e-4, abs=1e-6)
        assert wanted["found"][0]["degenerate"]
        assert (result.present, result.referents, result.box_xyxy) == (False, (), None)


def test_images_asked_together_are_answered_as_alone(client: Client, golden: Path, cases: list[dict]) -> None:
    asked = [(golden / case["image"], case["expression"]) for case in cases] * 3
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda request: client.ground(*request).results[0], asked))
    for answer, case in zip(answers, cases * 3, strict=True):
        assert answer.text == case["answer"]["text"]
        assert answer.score == pytest.approx(case["answer"]["score"], rel=2e-4, abs=1e-6)


def test_evaluation_reads_the_checkpoint_as_it_is_served(
    client: Client, checkpoint: Path, golden: Path, cases: list[dict]
) -> None:
    grounder = load_grounder(checkpoint, "cpu")
    pictures = [grounder.decode((golden / case["image"]).read_bytes()) for case in cases]
    expressions = ["big blue square", "the circle"]
    for case, here in zip(cases, grounder.ground_batch(pictures, [expressions] * len(cases)), strict=True):
        served = client.ground(golden / case["image"], expressions).results
        assert [answer.text for answer in here] == [result.text for result in served]
        for answer, result in zip(here, served, strict=True):
            assert answer.score == pytest.approx(result.score, rel=2e-4, abs=1e-6)
