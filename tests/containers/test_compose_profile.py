"""docker-compose.yml's CPU profile, run: its own users, roots, limits, networks, health checks and commands."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.containers.conftest import (
    COMPOSE_FILE,
    ROOT,
    SHIPPED,
    ground,
    inspect,
    kill,
    new_repository,
    newest_box_head,
    podman,
    publish,
    publish_wrong,
    run,
    until,
    version_served,
)

SERVICES = {  # in the order of their conditions, which podman does not wait for; Grafana has no stand-in
    "prepare-cpu": "service_completed_successfully",
    "triton-cpu": "service_healthy",
    "gateway": "service_healthy",
    "prometheus": "service_healthy",
}
UNITS = {"m": 2**20, "g": 2**30}


class Project:
    """The profile under a name of its own and on a free port, over a repository that others may share."""

    def __init__(self, name: str, folder: Path, repository: Path, digest: str = "") -> None:
        self.name, self._folder = name, folder
        folder.mkdir()
        (folder / "model_repository").symlink_to(repository)
        (folder / "deploy").symlink_to(ROOT / "deploy")
        text = COMPOSE_FILE.read_text()
        (folder / "docker-compose.yml").write_text(re.sub(r"@sha256:[0-9a-f]{64}", "", text))  # stand-ins have none
        self.key = run(sys.executable, "-m", "gateway.keys", "me", "--file", folder / "keys").strip()
        (folder / "grafana_password").write_text("none")
        for secret in ("keys", "grafana_password"):
            (folder / secret).chmod(0o644)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.serve(digest)

    def serve(self, digest: str) -> None:
        """Sets the digest that the next commands get, as an operator's .env does."""
        self._digest = digest

    def compose(self, *arguments: str, fails: bool = False) -> str:
        variables = {
            "REFERENT_MODEL": "mini",
            "REFERENT_DIGEST": self._digest,
            "REFERENT_PORT": str(self._port),
            "REFERENT_KEYS_FILE": "./keys",
            "GRAFANA_PASSWORD_FILE": "./grafana_password",
        }
        # without --read-only-tmpfs=false, podman would have /tmp and /run writable where docker has not
        own = ["--in-pod", "false", "--podman-run-args=--read-only-tmpfs=false", "--project-name", self.name]
        command = [Path(sys.executable).parent / "podman-compose", *own, "--profile", "cpu", *arguments]
        done = subprocess.run(
            command, cwd=self._folder, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def up(self, *services: str) -> None:
        for service in services:
            self.compose("up", "--detach", "--no-build", "--no-deps", service)
            if SERVICES[service] == "service_healthy":
                until(lambda name=service: self.is_healthy(name), otherwise=lambda name=service: self.logs(name))
            else:
                assert podman("wait", self.container(service)).strip() == "0", self.logs(service)

    def container(self, service: str) -> str:
        return f"{self.name}_{service}_1"

    def is_healthy(self, service: str) -> bool:
        """By the health check as it is written."""
        command = ["podman", "healthcheck", "run", self.container(service)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def logs(self, service: str) -> str:
        return podman("logs", "--tail", "30", self.container(service))

    def version_served(self) -> str:
        return version_served(self.url, self.key)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_repository(tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def project(gateway_image: str, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    first = digest_named(repository)
    project = Project("referent", tmp_path_factory.mktemp("projects") / "referent", repository, first)
    project.up(*SERVICES)
    yield project
    project.compose("down", "--volumes", "--timeout", "5")


def digest_named(repository: Path) -> str:
    return re.search(r"sha256:[0-9a-f]{64}", (repository / "mini/config.pbtxt").read_text())[0]


def status(pid: int, field: str) -> list[str]:
    [line] = re.findall(rf"^{field}:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return line.split()


def writable(pid: int) -> set[str]:
    """Mount points that the process may write to, but for the kernel's own."""
    mounts = [line.split(" ") for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    kernels = ("/proc", "/dev", "/sys")
    return {mount[4] for mount in mounts if "rw" in mount[5].split(",") and not mount[4].startswith(kernels)}


@pytest.mark.parametrize("service", [name for name, condition in SERVICES.items() if condition == "service_healthy"])
def test_service_is_locked_in_as_the_file_says(project: Project, service: str) -> None:
    written = yaml.safe_load(COMPOSE_FILE.read_text())["services"][service]
    found = inspect(project.container(service))
    pid = found["State"]["Pid"]
    user = written.get("user") or inspect(project.container(service))["Config"]["User"]
    assert status(pid, "Uid")[0] == user.partition(":")[0] != "0"
    assert (status(pid, "CapEff"), status(pid, "NoNewPrivs")) == (["0000000000000000"], ["1"])
    named = [volume.split(":") for volume in written.get("volumes", [])]
    wanted = {entry[1] for entry in named if entry[-1] != "ro"} | {
        path.split(":")[0] for path in written.get("tmpfs", [])
    }
    made_by_podman = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"}
    assert writable(pid) - made_by_podman == wanted
    memory = written["deploy"]["resources"]["limits"]["memory"]
    assert found["HostConfig"]["Memory"] == int(memory[:-1]) * UNITS[memory[-1]]
    assert found["HostConfig"]["CpuShares"] == written["cpu_shares"]
    assert found["NetworkSettings"]["Networks"].keys() == {f"referent_{name}" for name in written["networks"]}


def test_triton_has_no_way_out_and_no_port_of_the_host(project: Project) -> None:
    def has_a_way_out(service: str) -> bool:
        routes = Path(f"/proc/{inspect(project.container(service))['State']['Pid']}/net/route").read_text()
        return any(line.split()[1] == "00000000" for line in routes.splitlines()[1:])

    assert (has_a_way_out("triton-cpu"), has_a_way_out("gateway")) == (False, True)
    ports = inspect(project.container("triton-cpu"))["NetworkSettings"]["Ports"]
    assert not any(ports.values())


def test_question_through_the_published_port_is_answered_and_asks_for_a_key(project: Project) -> None:
    assert project.version_served() == SHIPPED
    assert ground(project.url, "").status_code == 401
    assert httpx.get(f"{project.url}/readyz").status_code == 200


def test_prometheus_finds_gateway_and_triton_by_their_names(project: Project) -> None:
    asking = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/api/v1/targets').read().decode())"

    def up() -> set[str]:
        targets = podman("exec", project.container("prometheus"), "python", "-c", asking)
        return set(re.findall(r'"job":"(\w+)"}[^{}]*"health":"up"', targets))

    until(lambda: up() == {"gateway", "triton"})


def test_version_is_published_released_and_rolled_back(project: Project, repository: Path) -> None:
    first = digest_named(repository)
    second = publish(repository)
    assert project.version_served() == SHIPPED  # what is published is served once it is asked for
    for digest, version in ((second, str(int(SHIPPED) + 1)), (first, SHIPPED)):
        project.serve(digest)
        assert digest in project.compose("run", "--rm", "prepare-cpu")
        project.compose("restart", "triton-cpu")
        until(lambda wanted=version: project.version_served() == wanted, otherwise=lambda: project.logs("gateway"))
        assert project.is_healthy("triton-cpu")


def test_damaged_version_changes_nothing(project: Project, repository: Path) -> None:
    before = project.version_served()
    digest = publish(repository)
    damaged = newest_box_head(repository)
    content = damaged.read_bytes()
    damaged.unlink()  # another version's too: published files are shared
    damaged.write_bytes(content[:-10])
    for wrong, reason in ((digest, "mini_box_head"), ("sha256:0", "no version of 'mini'")):
        project.serve(wrong)
        assert reason in project.compose("run", "--rm", "prepare-cpu", fails=True)
    assert project.version_served() == before
    kill(project.container("triton-cpu"))  # it comes back with what was prepared before
    until(lambda: project.version_served() == before)


def test_rehearsal_tells_wrong_answers_before_they_are_served(
    project: Project, repository: Path, tmp_path: Path
) -> None:
    wrong = publish_wrong(repository, tmp_path)
    rehearsal = Project("rehearsal", tmp_path / "rehearsal", repository, wrong)
    try:
        rehearsal.up("prepare-cpu", "triton-cpu")
        rehearsal.compose("up", "--detach", "--no-build", "--no-deps", "gateway")
        until(lambda: "finite numbers" in rehearsal.logs("gateway"))
        assert not rehearsal.is_healthy("gateway")
        assert project.version_served() == SHIPPED
    finally:
        rehearsal.compose("down", "--volumes", "--timeout", "5")


@pytest.mark.parametrize("service", ["triton-cpu", "gateway"])
def test_killed_container_comes_back_and_serves(project: Project, service: str) -> None:
    before = inspect(project.container(service))["State"]["Pid"]
    kill(project.container(service))
    until(lambda: inspect(project.container(service))["State"]["Pid"] not in (0, before))
    until(lambda: project.version_served() == SHIPPED, otherwise=lambda: project.logs(service))
