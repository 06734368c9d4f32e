"""Checkpoints of other projects, imported, exported, and asked through the real Triton and the gateway."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from export.build import export
from referent.core.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from referent.modeling.importers.visual_grounding import import_visual_grounding
from runtime.launcher import TritonServer
from tests.support.load import gateway

TOLERANCE = 1e-4  # of the image's side
MODELS = {  # served name -> variant, reading, and the reading's name in the golden outputs
    "vg-main": ("main", "last", "unpadded"),
    "vg-left600": ("main", "left600", "left600"),
    "vg-ablation": ("ablation", "last", "unpadded"),
    "vg-ablation-left600": ("ablation", "left600", "left600"),
}


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> Path:
    return data_folder / "golden" / "vg"


@pytest.fixture(scope="module")
def service(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    repository, checkpoints = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("checkpoints")
    for name, (variant, read, _) in MODELS.items():
        base = golden / "base-llava-1.5-tiny-hf"
        import_visual_grounding(golden / variant / "best.pth", base, checkpoints / name, read)
        export(checkpoints / name, name, repository)
    with (
        TritonServer(repository) as server,
        gateway(repository, server.grpc_url, default_model="vg-main") as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield http


@pytest.mark.parametrize("name", MODELS)
def test_served_boxes_are_those_of_visual_grounding_apis_own_code(
    service: httpx.Client, golden: Path, name: str
) -> None:
    variant, _, reading = MODELS[name]
    arrays = np.load(golden / "golden.npz")
    cases = json.loads((golden / "golden.json").read_text())["cases"]
    for image in ("landscape.png", "portrait.png"):
        asked = [case for case in cases if case["image"] == image]
        response = service.post(
            "/v1/ground",
            files={"image": (image, (golden / image).read_bytes())},
            data={"expression": [case["text"] for case in asked], "model": name},
        )
        assert response.status_code == 200, response.text
        sides = np.tile(Image.open(golden / image).size, 2)
        for case, result in zip(asked, response.json()["results"], strict=True):
            expected = cxcywh_to_xyxy(arrays[f"{case['i']}.{variant}.{reading}.bbox"][0]).clip(0, 1)
            assert np.abs(np.array(result["box_xyxy"]) / sides - expected).max() < TOLERANCE
            assert (result["score"], result["present"]) == (None, None)
            answer = service.post(  # its own route
                "/predict",
                json={
                    "image": base64.b64encode((golden / image).read_bytes()).decode(),
                    "text": case["text"],
                    "model": name,
                },
            ).json()
            assert answer["model"] == name
            assert np.abs(np.array(answer["bbox"]) - xyxy_to_cxcywh(expected)).max() < TOLERANCE


def test_served_models_have_the_runs_own_figures(service: httpx.Client) -> None:
    models = {model["name"]: model for model in service.get("/models").json()["models"]}
    assert set(models) == set(MODELS)
    assert models["vg-main"]["test_iou"] == pytest.approx(0.31938, abs=1e-5)
    assert models["vg-ablation"]["test_rmse"] == pytest.approx(0.25050, abs=1e-5)
    assert models["vg-ablation"]["test_mae"] == pytest.approx(0.19557, abs=1e-5)
