"""Containers that run, by podman and without a registry: `make image-check` brings it and runs this folder, as root.

Images and containers live in build/containers, apart from the machine's own: a stand-in under a vendor's name must not
be taken for the vendor's elsewhere.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "containers"
STANDINS = Path(__file__).parent / "standins"
SHIPPED = max((folder.name for folder in (ROOT / "model_repository/mini").glob("[1-9]*")), key=int)  # mini's version
DEBIAN = "trixie"  # whose Python is the images' version
PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates"
COMPOSE_FILE = ROOT / "docker-compose.yml"
# tests/containers/standins/FOLDER -> where its image's name stands
VENDORS = {
    "node": ROOT / "gateway/Dockerfile",
    "triton": COMPOSE_FILE,
    "prometheus": COMPOSE_FILE,
}
STORAGE = f"""[storage]
driver = "overlay"
graphroot = "{WORK}/storage"
runroot = "{WORK}/run"
"""
# runc, since crun wants other control groups than some machines have; limits of files at or below every machine's
ENGINE = f"""[engine]
runtime = "runc"
[network]
network_config_dir = "{WORK}/networks"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""


def podman(*arguments: str | Path, fails: bool = False) -> str:
    """What `podman ARGUMENTS` prints, on both streams. Fails unless the command ends as said."""
    done = subprocess.run(["podman", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode != 0) == fails, f"podman {' '.join(map(str, arguments))}:\n{done.stdout}"
    return done.stdout


def inspect(container: str) -> dict:
    [found] = json.loads(podman("container", "inspect", container))
    return found


def kill(container: str) -> None:
    """SIGKILL from the host: podman does not start what it was told to end."""
    subprocess.run(["kill", "-KILL", str(inspect(container)["State"]["Pid"])], check=True)


def until(condition: Callable[[], object], timeout_s: float = 120, otherwise: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {otherwise()}"
        time.sleep(0.5)


def ground(url: str, key: str) -> httpx.Response:
    """A question whose answer is known: tests/samples."""
    image = (ROOT / "tests/samples/scene-2.jpg").read_bytes()
    body = {"files": {"image": image}, "data": {"expression": "the pumpkin"}}
    return httpx.post(f"{url}/v1/ground", **body, headers={"X-API-Key": key}, timeout=30)


def version_served(url: str, key: str) -> str:
    """Of the model that answers correctly; "" while none does."""
    try:
        response = ground(url, key)
    except httpx.HTTPError:
        return ""
    if response.status_code != 200:
        return ""
    [answer] = response.json()["results"]
    assert answer["present"]
    return response.json()["version"]


@pytest.fixture(scope="session", autouse=True)
def _podman() -> Iterator[None]:
    """podman with a storage of its own, without containers before and after."""
    assert os.geteuid() == 0, "networks and limits of containers take root: run this by make image-check, as root"
    missing = [program for program in ("podman", "runc", "debootstrap") if not shutil.which(program)]
    assert not missing, f"{', '.join(missing)}: run this by make image-check, which installs them where apt has them"
    WORK.mkdir(parents=True, exist_ok=True)
    for variable, text in {"CONTAINERS_STORAGE_CONF": STORAGE, "CONTAINERS_CONF": ENGINE}.items():
        os.environ[variable] = str(WORK / f"{variable.lower()}.conf")
        Path(os.environ[variable]).write_text(text)
    _remove_containers()
    yield
    _remove_containers()


def _remove_containers() -> None:
    podman("pod", "rm", "--all", "--force", "--time", "0")
    podman("rm", "--all", "--force", "--time", "0", "--volumes")
    podman("volume", "prune", "--force")
    podman("network", "prune", "--force")


@pytest.fixture(scope="session")
def base() -> str:
    """A Debian under the name of the Dockerfiles' Python."""
    name = _named("python", ROOT / "gateway/Dockerfile")
    if not _exists(name):
        root = WORK / DEBIAN
        shutil.rmtree(root, ignore_errors=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, root)
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(["podman", "import", "--quiet", "-", name], stdin=tar.stdout, check=True)
        shutil.rmtree(root)
    wanted = re.search(r"python:(3\.\d+)", name)[1]
    assert f"Python {wanted}." in podman("run", "--rm", name, "python", "--version")
    return name


@pytest.fixture(scope="session")
def standins(base: str) -> None:
    """Stand-ins under the names of the vendors' images."""
    for folder, file in VENDORS.items():
        build(_named(folder, file), STANDINS / folder, "--volume", f"{ROOT}:/source:ro")


@pytest.fixture(scope="session")
def gateway_image(standins: None) -> str:
    build("localhost/referent-gateway", ROOT, "--file", ROOT / "gateway/Dockerfile")
    return "localhost/referent-gateway"


@pytest.fixture(scope="session")
def export_image(base: str) -> str:
    build("localhost/referent-export", ROOT, "--file", ROOT / "export/Dockerfile")
    return "localhost/referent-export"


def build(name: str, context: Path, *options: str | Path) -> None:
    """Packages come through the machine's own network, by the certificates that it trusts."""
    shared = ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro", "--network", "host"]
    podman("build", "--quiet", "--format", "docker", "--pull=never", *shared, "--tag", name, *options, context)


def _named(what: str, file: Path) -> str:
    """The image of a file whose name has the word, in full; without the digest, which a stand-in cannot have."""
    found = re.search(rf"\b(?:FROM|image:) +((?:[\w./-]*/)?{what}\w*:[\w.-]+)", file.read_text())[1]
    if found.count("/") == 0:
        return f"docker.io/library/{found}"
    return found if "." in found.partition("/")[0] else f"docker.io/{found}"


def _exists(name: str) -> bool:
    return subprocess.run(["podman", "image", "exists", name]).returncode == 0


def run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


@pytest.fixture
def compose() -> dict:
    return yaml.safe_load(COMPOSE_FILE.read_text())


def new_repository(folder: Path) -> Path:
    """A copy of model_repository, to publish into."""
    return shutil.copytree(ROOT / "model_repository", folder / "model_repository")


def publish(repository: Path, of: Path | None = None) -> str:
    """Publishes mini once more, `of` another repository's files, as an operator does; returns the digest."""
    program = [sys.executable, "-m", "export.versions", repository, "republish", "mini", "--from", of or repository]
    return re.search(r"sha256:[0-9a-f]{64}", run(*program))[0]


def publish_wrong(repository: Path, folder: Path) -> str:
    """Publishes a version whose files are as published and whose answers are not numbers."""
    wrong = shutil.copytree(ROOT / "model_repository", folder / "wrong")
    weights = bytearray(newest_box_head(wrong).read_bytes())
    middle = len(weights) // 2
    weights[middle : middle + 400] = b"\xff" * 400  # read as floats, these are NaN
    file = newest_box_head(wrong)
    file.write_bytes(weights)
    bundle_file = wrong / "mini" / SHIPPED / "bundle.json"
    bundle = json.loads(bundle_file.read_text())
    bundle["files"][str(file.relative_to(wrong))]["sha256"] = hashlib.sha256(weights).hexdigest()
    bundle_file.write_text(json.dumps(bundle))
    return publish(repository, wrong)


def newest_box_head(repository: Path) -> Path:
    versions = (repository / "mini_box_head").glob("[1-9]*/model.onnx")
    return max(versions, key=lambda file: int(file.parent.name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        "not run here: the GPU profile and overlay, the vendor's images (stand-ins have their names), Grafana, "
        "docker compose and Kubernetes themselves; docs/deployment.md says what that leaves open"
    )
