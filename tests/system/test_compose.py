"""docker-compose.yml without docker: valid by the compose specification, and what must hold in it: each function
`check_...` asserts one promise, and wrong edits are found. `make image-check` runs it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from gateway.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
TRITONS, PREPARING = ("triton-cpu", "triton-gpu"), ("prepare-cpu", "prepare-gpu")
DIGEST = r"(?:@sha256:[0-9a-f]{64})?"  # what make pin writes
Compose = dict[str, Any]


def gateway_settings(compose: Compose) -> Settings:
    """The gateway's, as its environment sets them; raises for a variable or value that it would refuse."""
    values = compose["services"]["gateway"]["environment"].items()
    given = {name: "mini" if value.startswith("${REFERENT_MODEL:?") else value for name, value in values}
    return Settings(**{name.removeprefix("REFERENT_").lower(): value for name, value in given.items()})


def by_service(compose: Compose, key: str) -> dict[str, Any]:
    """What the services that have the key say, by their names."""
    return {name: service[key] for name, service in compose["services"].items() if key in service}


def test_it_is_valid_by_the_compose_specification() -> None:
    compose = yaml.safe_load(TEXT.replace("${REFERENT_PORT:-8000}", "8000"))  # as compose does before it reads
    PyCompose.from_yaml(yaml.safe_dump(compose))
    compose["services"]["gateway"]["port"] = []
    with pytest.raises(ValueError, match="port"):  # the control
        PyCompose.from_yaml(yaml.safe_dump(compose))


def check_gateway_and_triton_share_the_repository_read_only(compose: Compose) -> None:
    settings = gateway_settings(compose)
    for name in (*TRITONS, *PREPARING, "gateway"):
        assert "./model_repository:/models:ro" in compose["services"][name]["volumes"]
    assert str(settings.model_repository) == "/models"
    assert settings.models == {settings.default_model}  # Triton loads no other


def check_triton_is_recent_and_takes_no_orders(compose: Compose) -> None:
    for name in TRITONS:
        triton = compose["services"][name]
        tag = re.search(rf":(\d\d)\.(\d\d)-py3{DIGEST}$", triton["image"])
        assert tag, triton["image"]
        assert tuple(map(int, tag.groups())) >= (26, 7)  # the first with ONNX Runtime 1.27
        control = "--grpc-restricted-protocol=model-repository,shared-memory,logging,trace"
        key = "admin=$$(cat /proc/sys/kernel/random/uuid)"
        assert triton["entrypoint"] == ["/bin/sh", "-c", f'exec tritonserver "$$@" {control}:{key}', "tritonserver"]
        assert triton["command"] == [  # no other: it could undo one of these
            "--model-repository=/private/models",
            "--model-control-mode=explicit",
            "--load-model=${REFERENT_MODEL:?the model to serve, such as mini}",
            "--disable-auto-complete-config",
            "--allow-http=false",
            "--grpc-port=8001",
            "--metrics-port=8002",
            "--cuda-memory-pool-byte-size=0:1073741824",
        ]
        assert "ports" not in triton


def check_only_what_is_published_has_a_way_out(compose: Compose) -> None:
    for name, service in compose["services"].items():
        if name not in PREPARING:  # which have no network
            assert [*service["networks"]] == ["serving", *(["edge"] if "ports" in service else [])]
    assert compose["networks"] == {"serving": {"internal": True}, "edge": {}}


def check_images_are_pinned(compose: Compose) -> None:
    for service in compose["services"].values():
        assert "build" in service or re.search(rf":[\w.-]*\d[\w.-]*{DIGEST}$", service["image"]), service["image"]


def check_triton_on_a_gpu_has_room_for_what_passes_between_the_steps(compose: Compose) -> None:
    triton = compose["services"]["triton-gpu"]
    [(gpu, size)] = re.findall(r"--cuda-memory-pool-byte-size=(\d):(\d+)", " ".join(triton["command"]))
    assert (gpu, int(size) >= 2**30) == ("0", True)
    assert triton["shm_size"] == "4gb"


def check_a_profile_starts_one_triton_and_all_that_needs_it(compose: Compose) -> None:
    services = compose["services"]
    for profile in ("cpu", "gpu"):
        started = {name for name, service in services.items() if profile in service["profiles"]}
        assert started == {f"prepare-{profile}", f"triton-{profile}", "gateway", "prometheus", "grafana"}
        assert services[f"triton-{profile}"]["networks"]["serving"]["aliases"] == ["triton"]
    [device] = services["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "reservations" not in services["triton-cpu"]["deploy"]["resources"]


def check_services_wait_for_the_health_of_those_they_need(compose: Compose) -> None:
    services = compose["services"]
    needs = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert needs["gateway"] == set(TRITONS)
    # one that waits for a gateway tells nobody why there is none
    assert (needs["prometheus"], needs["grafana"]) == (set(), {"prometheus"})
    for name, service in services.items():
        for needed, need in service.get("depends_on", {}).items():
            once = needed in PREPARING
            assert need["condition"] == ("service_completed_successfully" if once else "service_healthy")
        assert "healthcheck" in service or "HEALTHCHECK" in (ROOT / services[name]["build"]["dockerfile"]).read_text()


def check_triton_is_healthy_once_its_models_are_loaded(compose: Compose) -> None:
    for name, start_period in zip(TRITONS, ("120s", "900s"), strict=True):
        assert compose["services"][name]["healthcheck"] == {
            "test": ["CMD", "curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8002/metrics"],
            "interval": "5s",
            "timeout": "3s",
            "retries": 3,
            "start_period": start_period,
        }


def check_triton_serves_a_repository_of_one_digest_on_its_device(compose: Compose) -> None:
    for device in ("cpu", "gpu"):
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


def check_services_are_locked_down_and_limited(compose: Compose) -> None:
    for name, service in compose["services"].items():
        assert service["restart"] == ("no" if name in PREPARING else "unless-stopped")
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        # docker refuses more cores than the host has; weights hold on any
        assert service["deploy"]["resources"]["limits"].keys() == {"memory"}
        assert service["cpu_shares"] > 0
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        own = [volume for volume in service.get("volumes", []) if volume.startswith("./")]
        assert all(volume.endswith(":ro") for volume in own)
    # the other images have a user of their own, who isn't root
    assert by_service(compose, "user") == dict.fromkeys(PREPARING, "0:0") | dict.fromkeys(TRITONS, "1000:1000")
    temporary = {name: ["/tmp:size=1g" if name == "gateway" else "/tmp"] for name in (*TRITONS, "gateway", "grafana")}
    assert by_service(compose, "tmpfs") == temporary
    shares = {name: service["cpu_shares"] for name, service in compose["services"].items()}
    assert min(shares[name] for name in TRITONS) > shares["gateway"] > shares["prometheus"]
    assert by_service(compose, "ports").keys() == {"gateway", "grafana"}


def check_what_must_be_given_stops_the_start_with_a_remedy_and_secrets_are_files(compose: Compose) -> None:
    variables = dict(re.findall(r"\$\{(\w+)([^}]*)\}", json.dumps(compose, ensure_ascii=False)))
    assert (variables.pop("REFERENT_DIGEST"), variables.pop("REFERENT_PORT")) == (":-", ":-8000")
    assert variables.keys() == {"REFERENT_MODEL", "REFERENT_KEYS_FILE", "GRAFANA_PASSWORD_FILE"}
    assert all(default.startswith(":?") and len(default) > 10 for default in variables.values())
    for service in compose["services"].values():
        for secret in service.get("secrets", []):
            assert compose["secrets"][secret].keys() == {"file"}
            assert f"/run/secrets/{secret}" in service["environment"].values()


def check_gateway_is_guarded_and_has_time_to_drain(compose: Compose) -> None:
    settings = gateway_settings(compose)
    assert settings.keys_file == Path("/run/secrets/referent_keys")
    assert not settings.open_access
    grace_s = int(compose["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.drain_grace_s + settings.deadline_s


def check_grafana_asks_for_the_password(compose: Compose) -> None:
    assert compose["services"]["grafana"]["environment"] == {
        "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana_password",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }


def check_prometheus_scrapes_the_ports_that_are_served(compose: Compose) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    settings = gateway_settings(compose)
    gateway, triton = config["scrape_configs"]
    assert gateway["static_configs"] == [{"targets": [f"gateway:{settings.metrics_port}"]}]
    [found] = triton["dns_sd_configs"]
    assert found["names"] == ["triton"]
    for name in TRITONS:
        assert {f"--metrics-port={found['port']}", "--grpc-port=8001"} <= set(compose["services"][name]["command"])
    assert settings.triton_url == "dns:///triton:8001"


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("check", CHECKS)
def test_promise_holds(check: str) -> None:
    CHECKS[check](yaml.safe_load(TEXT))


WRONG_EDITS = {
    "pool of 64 MB": ("    - --cuda-memory-pool-byte-size=0:1073741824", "    #"),
    "pool too small": ("=0:1073741824", "=0:67108864"),
    "shared memory too small": ("    shm_size: 4gb\n", ""),
    "cores that a host may lack": ("limits: {memory: 48g}", 'limits: {cpus: "8", memory: 48g}'),
    "no memory limit": ("        limits: {memory: 3g}", "        limits: {}"),
    "gateway before Triton": ("    cpu_shares: 1024", "    cpu_shares: 4096"),
    "tag that moves": ("prom/prometheus:v3.5.0", "prom/prometheus:latest"),
    "digest cut off": ("tritonserver:26.07-py3", "tritonserver:26.07-py3@sha256:0123"),
    "Triton too old": ("tritonserver:26.07-py3", "tritonserver:26.06-py3"),
    "device that another serves": ("--device=gpu", "--device=cpu"),
    "any digest": ("      - --digest=${REFERENT_DIGEST:-}\n", ""),
    "another repository served": ("--model-repository=/private/models", "--model-repository=/models"),
    "control left open": ("--grpc-restricted-protocol=model-repository,", "--grpc-restricted-protocol="),
    "Triton for the host": ('  expose: ["8001", "8002"]', '  ports: ["127.0.0.1:8001:8001"]'),
    "gateway for everybody": ('"127.0.0.1:${REFERENT_PORT:-8000}:8000"', '"${REFERENT_PORT:-8000}:8000"'),
    "way out for Triton": ("    internal: true", "    internal: false"),
    "monitoring that waits for what it watches": (
        "    healthcheck:\n      test: [\"CMD\", \"wget\", \"--quiet\", \"--spider\", \"http://127.0.0.1:9090/-/ready\"]",
        "    depends_on: {gateway: {condition: service_healthy}}\n    healthcheck:\n      test: [\"CMD\", \"wget\"]",
    ),
    "repository that may be written": ("./model_repository:/models:ro", "./model_repository:/models"),
    "root that may be written": ("  read_only: true", "  read_only: false"),
    "unknown setting": ("REFERENT_TRITON_URL", "REFERENT_TRITON"),
    "key that is known": ("admin=$$(cat /proc/sys/kernel/random/uuid)", "admin=secret"),
    "Triton as root": ('  user: "1000:1000"\n', ""),
    "all models": ("    - --allow-http=false", "    - --allow-http=false\n    - --load-model=*"),
    "HTTP after all": ("    - --allow-http=false", "    - --allow-http=false\n    - --allow-http=true"),
    "healthy whatever happens": (
        '["CMD", "curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8002/metrics"]',
        '["CMD-SHELL", "curl --fail --silent --output /dev/null http://127.0.0.1:8002/metrics || true"]',
    ),
    "health that is not asked for": ("      start_period: 900s", "      disable: true"),
    "start-up too short": ("start_period: 900s", "start_period: 9s"),
    "no GPU": ("count: 1,", "count: 0,"),
    "gateway out of reach": (
        '    networks: [serving, edge]\n    ports:\n      - "127.0.0.1:${REFERENT_PORT',
        '    networks: [serving]\n    ports:\n      - "127.0.0.1:${REFERENT_PORT',
    ),
    "way out for Prometheus": ("    networks: [serving]", "    networks: [serving, edge]"),
    "gateway without /tmp": ('tmpfs: ["/tmp:size=1g"]', "tmpfs: []"),
    "Grafana for everybody": (
        "      GF_SECURITY_ADMIN_PASSWORD__FILE",
        '      GF_AUTH_ANONYMOUS_ENABLED: "true"\n      GF_SECURITY_ADMIN_PASSWORD__FILE',
    ),
    "services that stay down": ("restart: unless-stopped", 'restart: "no"'),
}  # fmt: skip


@pytest.mark.parametrize("edit", WRONG_EDITS)
def test_wrong_edit_breaks_a_promise(edit: str) -> None:
    right, wrong = WRONG_EDITS[edit]
    assert right in TEXT
    compose, broken = yaml.safe_load(TEXT.replace(right, wrong)), []
    for promise, check in CHECKS.items():
        try:
            check(compose)
        except (AssertionError, KeyError, ValueError):
            broken.append(promise)
    print(edit, broken)
    assert broken
