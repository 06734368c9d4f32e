"""docker-compose.yml without docker: valid by the compose specification, and what must hold in it."""

import re
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

from gateway.settings import Settings

ROOT = Path(__file__).parents[2]
TRITONS, PREPARING = ("triton-cpu", "triton-gpu"), ("prepare-cpu", "prepare-gpu")


@pytest.fixture
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture
def gateway_settings(compose: dict, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The gateway's, as its environment sets them."""
    for name, value in compose["services"]["gateway"]["environment"].items():
        monkeypatch.setenv(name, "mini" if value.startswith("${REFERENT_MODEL:?") else value)
    return Settings()


def test_it_is_valid_by_the_compose_specification(compose: dict) -> None:
    PyCompose.from_yaml(yaml.safe_dump(compose))
    compose["services"]["gateway"]["port"] = []
    with pytest.raises(ValueError, match="port"):  # the control
        PyCompose.from_yaml(yaml.safe_dump(compose))


def test_gateway_and_triton_share_the_repository_read_only(compose: dict, gateway_settings: Settings) -> None:
    for name in (*TRITONS, *PREPARING, "gateway"):
        assert "./model_repository:/models:ro" in compose["services"][name]["volumes"]
    assert str(gateway_settings.model_repository) == "/models"
    assert gateway_settings.models == {gateway_settings.default_model}  # Triton loads no other


@pytest.mark.parametrize("name", TRITONS)
def test_triton_is_recent_and_takes_no_orders(compose: dict, name: str) -> None:
    triton = compose["services"][name]
    year, month = map(int, re.search(r":(\d\d)\.(\d\d)-py3$", triton["image"]).groups())
    assert (year, month) >= (26, 7)  # the first with ONNX Runtime 1.27
    assert {"--allow-http=false", "--model-control-mode=explicit"} <= set(triton["command"])
    assert "--grpc-restricted-protocol=model-repository,shared-memory,logging,trace:" in triton["entrypoint"][2]
    assert "ports" not in triton
    assert [*triton["networks"]] == ["serving"]
    assert compose["networks"]["serving"]["internal"]


def test_a_profile_starts_one_triton_and_all_that_needs_it(compose: dict) -> None:
    services = compose["services"]
    for profile in ("cpu", "gpu"):
        started = {name for name, service in services.items() if profile in service["profiles"]}
        assert started == {f"prepare-{profile}", f"triton-{profile}", "gateway", "prometheus", "grafana"}
        assert services[f"triton-{profile}"]["networks"]["serving"]["aliases"] == ["triton"]
    [device] = services["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "reservations" not in services["triton-cpu"]["deploy"]["resources"]


def test_services_wait_for_the_health_of_those_they_need(compose: dict) -> None:
    services = compose["services"]
    needs = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert needs["gateway"] == set(TRITONS)
    assert (needs["prometheus"], needs["grafana"]) == ({"gateway"}, {"prometheus"})
    for name, service in services.items():
        for needed, need in service.get("depends_on", {}).items():
            once = needed in PREPARING
            assert need["condition"] == ("service_completed_successfully" if once else "service_healthy")
        assert "healthcheck" in service or "HEALTHCHECK" in (ROOT / services[name]["build"]["dockerfile"]).read_text()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_triton_serves_a_repository_of_one_digest_on_its_device(compose: dict, device: str) -> None:
    prepare, triton = (compose["services"][f"{name}-{device}"] for name in ("prepare", "triton"))
    assert triton["depends_on"] == {f"prepare-{device}": {"condition": "service_completed_successfully"}}
    program, repository, name, *options = prepare["command"][2:]
    assert (program, repository) == ("referent.triton.repository", "/models")
    assert f"--load-model={name}" in triton["command"]
    assert options == ["--digest=${REFERENT_DIGEST:-}", "--to=/private/models", f"--device={device}"]
    assert "--model-repository=/private/models" in triton["command"]
    assert ("private:/private" in prepare["volumes"], "private:/private:ro" in triton["volumes"]) == (True, True)
    assert triton["labels"] == {"referent.digest": "${REFERENT_DIGEST:-}"}  # or the old one would go on
    assert (prepare["restart"], prepare["network_mode"]) == ("no", "none")


def test_services_are_locked_down_and_limited(compose: dict) -> None:
    for service in compose["services"].values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        own = [volume for volume in service.get("volumes", []) if volume.startswith("./")]
        assert all(volume.endswith(":ro") for volume in own)
    assert [name for name, service in compose["services"].items() if "ports" in service] == ["gateway", "grafana"]


def test_what_must_be_given_stops_the_start_with_a_remedy_and_secrets_are_files(compose: dict) -> None:
    variables = set(re.findall(r"\$\{(\w+)([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
    variables.remove(("REFERENT_DIGEST", ":-"))
    assert {name for name, _ in variables} == {"REFERENT_MODEL", "REFERENT_KEYS_FILE", "GRAFANA_PASSWORD_FILE"}
    assert all(default.startswith(":?") and len(default) > 10 for _, default in variables)
    for service in compose["services"].values():
        for secret in service.get("secrets", []):
            assert compose["secrets"][secret].keys() == {"file"}
            assert f"/run/secrets/{secret}" in service["environment"].values()


def test_gateway_is_guarded_and_has_time_to_drain(compose: dict, gateway_settings: Settings) -> None:
    assert gateway_settings.keys_file == Path("/run/secrets/referent_keys")
    assert not gateway_settings.open_access
    grace_s = int(compose["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > gateway_settings.drain_grace_s + gateway_settings.deadline_s


def test_prometheus_scrapes_the_ports_that_are_served(compose: dict, gateway_settings: Settings) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    gateway, triton = config["scrape_configs"]
    assert gateway["static_configs"] == [{"targets": [f"gateway:{gateway_settings.metrics_port}"]}]
    [found] = triton["dns_sd_configs"]
    assert found["names"] == ["triton"]
    assert f"--metrics-port={found['port']}" in compose["services"]["triton-gpu"]["command"]
    assert gateway_settings.triton_url == "dns:///triton:8001"
    assert "--grpc-port=8001" in compose["services"]["triton-gpu"]["command"]
