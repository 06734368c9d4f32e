"""VPP-LLaVA, imported, exported and asked through the real tritonserver and the real gateway; and judged there."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from export.build import export
from referent.client.http import Client
from referent.commands.app import app
from referent.core.bundle import load_bundle
from referent.kinds import kind_of
from referent.modeling.grounder import load_grounder
from referent.modeling.importers.vpp_llava import import_vpp_llava
from runtime.launcher import TritonServer
from tests.support.load import gateway
from tests.support.visual_prompts import save_llava, save_writing_checkpoint


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


@pytest.fixture(scope="module")
def tiny_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny model with prompts that answers in text, served; it needs no published data."""
    folder = tmp_path_factory.mktemp("tiny")
    repository = folder / "model_repository"
    export(save_writing_checkpoint(folder / "checkpoint", save_llava(folder / "llava")), "tiny", repository)
    with TritonServer(repository) as server, gateway(repository, server.grpc_url, default_model="tiny") as url:
        yield url


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """An image, and a row about it as each of the benchmarks has it."""
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "1.jpg")
    box, masked = [5, 10, 25, 20], np.zeros((40, 60), np.uint8, order="F")
    masked[10:20, 5:25] = 1
    counts = coco_mask.encode(masked)["counts"].decode()
    rec = {"image": "1.jpg", "sent": "the red cup", "bbox": box, "height": 40, "width": 60}
    gseval = {
        "image_path": "1.jpg",
        "caption": "a cup",
        "box": box,
        "segmentation": {"size": [40, 60], "counts": counts},
    }
    lines = {
        "refcoco_val.jsonl": [rec, rec | {"sent": "the cup"}],
        "gseval.jsonl": [gseval | {"idx": i, "class_id": i, "label": name} for i, name in enumerate(("cup", "plate"))],
    }
    for name, rows in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"query_test": {"1_1": ["red cup", "cup"]}, "bbox": {"1_1": box}, "imsize": {"1.jpg": [60, 40]}}
    for name, content in files.items():
        (tmp_path / f"referit_{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("format", "file"),
    [("rec", "refcoco_val.jsonl"), ("referit", "referit_query_test.json"), ("gseval", "gseval.jsonl")],
)
def test_a_benchmark_is_one_command(tiny_url: str, annotations: Path, format: str, file: str) -> None:
    asked = ["evaluate", format, "--annotations", annotations / file, "--images", annotations, "--url", tiny_url]
    result = CliRunner().invoke(app, [*map(str, asked), "--json"])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    figures = json.loads("\n".join(lines[lines.index("{") :]))  # the gateway in this process logs before it
    assert (figures["summary"]["n"], figures["summary"]["missing"]) == (2, 0)
    if format == "gseval":
        assert {name: row["n"] for name, row in figures["groups"]["class_id"].items()} == {"0": 1, "1": 1}
        assert {name: row["n"] for name, row in figures["mask_groups"]["class_id"].items()} == {"0": 1, "1": 1}
        assert figures["masks"]["n"] == 2
