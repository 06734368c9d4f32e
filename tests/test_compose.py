"""docker-compose.yml without docker: valid by the compose specification, and what must hold in it."""

import re
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).parents[1]


@pytest.fixture
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_it_is_valid_by_the_compose_specification(compose: dict) -> None:
    PyCompose.from_yaml((ROOT / "docker-compose.yml").read_text())
    compose["services"]["gateway"]["port"] = []
    with pytest.raises(ValueError, match="port"):  # the control
        PyCompose.from_yaml(yaml.safe_dump(compose))


def test_gateway_and_triton_share_the_repository_read_only(compose: dict) -> None:
    for service in compose["services"].values():
        assert "./model_repository:/models:ro" in service["volumes"]


def test_triton_is_recent_and_its_http_is_off(compose: dict) -> None:
    triton = compose["services"]["triton"]
    year, month = map(int, re.search(r":(\d\d)\.(\d\d)-py3$", triton["image"]).groups())
    assert (year, month) >= (26, 7)  # the first with ONNX Runtime 1.27
    assert "--allow-http=false" in triton["command"]
    assert "ports" not in triton
