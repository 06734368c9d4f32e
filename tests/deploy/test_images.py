"""The images without docker: clean by hadolint; the steps of the Dockerfiles run in a plain folder, and what they make
serves; the commands that start Triton are given to the real one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from referent.triton.golden import probe
from referent.triton.repository import Placement, build
from runtime.distribution import find_distribution
from runtime.launcher import TritonServer, free_port
from tests.deploy.conftest import KUBERNETES, ROOT, run, tool
from tests.deploy.manifests import render
from tests.support.tiny import MODEL_REPOSITORY

DOCKERFILES = [ROOT / "gateway/Dockerfile", ROOT / "export/Dockerfile"]
SAMPLES = ROOT / "tests" / "samples"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.parent.name)
def test_dockerfile_is_clean(dockerfile: Path) -> None:
    run(tool("hadolint"), "--failure-threshold", "style", dockerfile)
    run(tool("checkov"), "--file", dockerfile, "--framework", "dockerfile", "--compact", "--quiet")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.parent.name)
def test_image_runs_as_nobody_and_its_context_has_what_it_copies(dockerfile: Path) -> None:
    steps = steps_of(dockerfile)
    assert [step.value for step in steps if step.instruction == "USER"] == ["65534:65534"]
    let_in = re.findall(r"^!([\w./]+?)(?:/\*\*)?$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [shlex.split(step.value)[:-1] for step in steps if step.instruction == "COPY"]
    sources = {source for words in copied if not words[0].startswith("--from") for source in words}
    assert all(any(Path(source).is_relative_to(folder) for folder in let_in) for source in sources)
    assert all(re.search(r":[\w.-]*\d", step.value) for step in steps if step.instruction == "FROM")


class Step(NamedTuple):
    """An instruction of a Dockerfile, and the stage that it belongs to."""

    stage: str
    instruction: str
    value: str


def steps_of(dockerfile: Path) -> list[Step]:
    steps, stage = [], ""
    for entry in DockerfileParser(str(dockerfile)).structure:
        if entry["instruction"] == "FROM":
            stage = entry["value"].partition(" AS ")[2]
        if entry["instruction"] != "COMMENT":
            steps.append(Step(stage, entry["instruction"], entry["value"]))
    return steps


def build_image(
    dockerfile: Path, root: Path, leave_out: frozenset[str] = frozenset(), edits: Iterable[tuple[str, str]] = ()
) -> None:
    """Runs the steps with `root` for /: the stages share it, so that what one copies from another lies there."""
    folder = root
    for stage, instruction, value in steps_of(dockerfile):
        if stage in leave_out:
            continue
        if instruction == "WORKDIR":
            folder = root / value.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif instruction == "RUN":
            path = f"{with_python(dockerfile, root)}:{os.environ['PATH']}"
            for right, other in edits:
                value = value.replace(right, other)
            run("sh", "-ec", value, cwd=folder, env={**os.environ, "PATH": path})
        elif instruction == "COPY" and value.removeprefix("--from=").split()[0] not in leave_out:
            *sources, target = [word for word in shlex.split(value) if not word.startswith("--from=")]
            for source in sources:
                copy(root / source[1:] if value.startswith("--from=") else ROOT / source, folder / target)


def with_python(dockerfile: Path, root: Path) -> Path:
    """A folder in which `python` is the version that the image has: its packages are resolved for that one."""
    [version] = {match[0] for step in steps_of(dockerfile) if (match := re.search(r"(?<=python:)3\.\d+", step.value))}
    folder = root / "python"
    folder.mkdir(exist_ok=True)
    if not (folder / "python").exists():
        (folder / "python").symlink_to(interpreter(version))
    return folder


def interpreter(version: str) -> Path:
    """A Python of that version: on the PATH, or among pyenv's, whose programs on the PATH run the chosen one alone."""
    on_path = shutil.which(f"python{version}")
    pyenvs = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
    for candidate in [*([Path(on_path)] if on_path else []), *sorted(pyenvs)]:
        if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    pytest.skip(f"no Python {version} here, for which the image's packages are resolved")


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored) if source != target else None
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def gateway_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gateway-image")
    build_image(ROOT / "gateway/Dockerfile", root)
    return root


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    with TritonServer(MODEL_REPOSITORY, ["mini"]) as server:
        yield server


def test_gateways_image_serves(gateway_root: Path, server: TritonServer) -> None:
    ports = {"REFERENT_PORT": free_port(), "REFERENT_METRICS_PORT": free_port()}
    settings = {"REFERENT_TRITON_URL": server.grpc_url, "REFERENT_MODEL_REPOSITORY": MODEL_REPOSITORY, **ports}
    environment = {name: str(value) for name, value in settings.items()}
    environment["PATH"] = f"{gateway_root}/app/venv/bin:{os.environ['PATH']}"
    last = {step.instruction: step.value for step in steps_of(ROOT / "gateway/Dockerfile")}
    command = json.loads(last["CMD"])
    health = json.loads(last["HEALTHCHECK"].partition("CMD ")[2].replace("\\", ""))
    health[-1] = health[-1].replace(":8000", f":{ports['REFERENT_PORT']}")
    started = partial(subprocess.Popen, cwd=gateway_root / "app", env=environment, stderr=subprocess.PIPE, text=True)
    program = gateway_root / "app/venv/bin" / command[0]
    with started([program, *command[1:]]) as process:
        try:
            url = next(line["url"] for line in map(json.loads, process.stderr) if line["event"] == "ready")
            image = (SAMPLES / "scene-2.jpg").read_bytes()
            answer = httpx.post(f"{url}/v1/ground", files={"image": image}, data={"expression": "the pumpkin"})
            assert (answer.status_code, answer.json()["results"][0]["present"]) == (200, True)
            metrics = httpx.get(f"http://127.0.0.1:{ports['REFERENT_METRICS_PORT']}/metrics").text
            assert 'referent_requests_total{code="200",route="/v1/ground"} 1.0' in metrics
            run(gateway_root / "app/venv/bin" / health[0], *health[1:], env=environment)
        finally:
            process.terminate()


def kubernetes_step() -> list[str]:
    """The command of the init container that makes Triton's repository."""
    step = render(KUBERNETES / "overlays/cpu", tool("kubectl")).pod("triton")["initContainers"][0]
    values = {"$(MODEL)": "mini", "--digest=$(DIGEST)": "--digest=", "--device=$(DEVICE)": "--device=cpu"}
    return [values.get(word, word) for word in (*step["command"], *step["args"])]


def compose_step() -> list[str]:
    step = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prepare-cpu"]
    words = [re.sub(r"\$\{REFERENT_MODEL:[^}]+\}", "mini", word) for word in step["command"]]
    return [word.replace("${REFERENT_DIGEST:-}", "") for word in words]


def test_gateways_image_has_pinned_packages_alone_no_torch_and_makes_repositories(
    gateway_root: Path, tmp_path: Path
) -> None:
    python = gateway_root / "app/venv/bin/python"
    installed = pins(run(python, "-m", "pip", "list", "--format", "freeze", cwd="/"))
    pinned = (ROOT / "gateway/constraints.txt").read_text()
    assert installed <= pins(pinned)
    assert not any(name.startswith(("torch==", "onnxruntime")) for name in installed)
    for name, verify in {"kubernetes": kubernetes_step(), "compose": compose_step()}.items():
        private = tmp_path / name
        words = [word.replace("/models", str(MODEL_REPOSITORY)) for word in verify[1:]]
        words = [f"--to={private}" if word.startswith("--to=") else word for word in words]
        assert "files are as published" in run(python, *words, cwd="/")
        with pytest.raises(AssertionError, match="no version of 'mini'"):
            run(python, *words, "--digest=sha256:0", cwd="/")


def pins(listed: str) -> set[str]:
    """NAME==VERSION of each line that has them; names as pip compares them."""
    found = re.findall(r"^([\w.-]+)==([^\s\\]+)", listed, re.MULTILINE)
    own = ("pip", "referent-grounding")
    return {f"{name}=={version}" for raw, version in found if (name := canonicalize_name(raw)) not in own}


def entries(constraints: Path) -> dict[str, str]:
    """Each package's lines, by its name."""
    found = re.split(r"^(?=\w)", constraints.read_text(), flags=re.MULTILINE)[1:]
    return {canonicalize_name(entry.partition("==")[0]): entry for entry in found}


@pytest.mark.parametrize(("image", "extras"), [("gateway", ["gateway", "tracing"]), ("export", ["export"])])
def test_images_install_all_that_they_need_by_hashes(image: str, extras: list[str], tmp_path: Path) -> None:
    constraints = ROOT / image / "constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    names = {canonicalize_name(Requirement(text).name) for text in asked}
    assert names | {"setuptools"} <= entries(constraints).keys()
    check_hashes(constraints, tmp_path)
    dockerfile = "\n".join(step.value for step in steps_of(ROOT / image / "Dockerfile") if step.instruction == "RUN")
    assert "install --no-cache-dir --require-hashes --requirement constraints.txt" in dockerfile
    for damage in ("pydantic-core", "numpy"):  # the control: one that others need is missing
        (tmp_path / "fewer.txt").write_text("".join(e for name, e in entries(constraints).items() if name != damage))
        with pytest.raises(AssertionError, match=damage):
            check_hashes(tmp_path / "fewer.txt", tmp_path)


def check_hashes(constraints: Path, folder: Path) -> None:
    """Fails unless every package in the list, and all that those need, has a version and its hashes; downloads none."""
    options = ["--dry-run", "--require-hashes", "--python-version", "3.13", "--target", folder / "target"]
    platform = ["--python-platform", "x86_64-unknown-linux-gnu"]
    run(tool("uv"), "pip", "install", *options, *platform, "--requirement", constraints)


def test_export_image_has_the_code_of_its_job(tmp_path: Path) -> None:
    """Its steps without the gigabytes of torch and transformers, which `make test` runs the same code with."""
    light = tmp_path / "light.txt"
    light.write_text(entries(ROOT / "export/constraints.txt")["setuptools"])
    edits = [("--requirement constraints.txt", f"--requirement {light}"), ("&& venv/bin/pip check", "")]
    build_image(ROOT / "export/Dockerfile", tmp_path, edits=edits)
    packages = next((tmp_path / "app/venv/lib").glob("python3.*/site-packages"))
    assert (tmp_path / "app/export/build.py").exists()
    assert not (packages / "export").exists()
    assert (packages / "referent/modeling/checkpoint.py").exists()


def compose_command() -> list[str]:
    triton = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["triton-gpu"]
    words = [*triton["entrypoint"], *triton["command"]]
    return [re.sub(r"\$\{REFERENT_MODEL:[^}]+\}", "mini", word).replace("$$", "$") for word in words]


def kubernetes_command() -> list[str]:
    triton = render(KUBERNETES / "overlays/gpu", tool("kubectl")).container("triton")
    words = [*triton["command"], *triton["args"]]
    return [word.replace("$(MODEL)", "mini").replace("$$", "$") for word in words]


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[int]:
    """The command with this machine's Triton for tritonserver, and its gRPC port."""
    distribution, ports = find_distribution(), (free_port(), free_port())
    own = {
        "backend-directory": distribution.assemble_backends(folder),
        "grpc-port": ports[0],
        "metrics-port": ports[1],
    }
    binaries = folder / "bin"
    binaries.mkdir()
    options = " ".join(f"--{name}={value}" for name, value in own.items())
    program = binaries / "tritonserver"
    # the options of this machine stand last, where they win
    program.write_text(f'#!/bin/sh\nexec {distribution.executable} "$@" {options}\n')
    program.chmod(0o755)
    environment = distribution.environment()
    environment["PATH"] = f"{binaries}:{environment['PATH']}"
    build(MODEL_REPOSITORY, "mini", "", folder / "models", Placement("cpu"))
    command = [word.replace("/private/models", str(folder / "models")) for word in command]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield ports[0]
        finally:
            process.terminate()


@pytest.mark.parametrize("command", [compose_command, kubernetes_command])
def test_triton_serves_by_its_command_and_takes_no_orders(command: object, tmp_path: Path) -> None:
    def call(method: str) -> bytes:
        return channel.unary_unary(method)(b"", timeout=60, wait_for_ready=True)

    with started(command(), tmp_path) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert call("/grpc.health.v1.Health/Check") == b"\x08\x01", (tmp_path / "log").read_text()  # SERVING
        probe(MODEL_REPOSITORY, f"127.0.0.1:{port}", "mini", 10)
        for method in (
            "RepositoryIndex",
            "RepositoryModelUnload",
            "LogSettings",
            "TraceSetting",
            "SystemSharedMemoryStatus",
        ):
            with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
                call(f"/inference.GRPCInferenceService/{method}")
