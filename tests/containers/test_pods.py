"""The pods of the rendered manifests, run: their init containers' commands, users, roots, limits, volumes and probes.

podman stands in for the kubelet, as far as `Pod` says. The claim is a folder, a headless service the pods' alias.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import yaml

from referent.core.bundle import load_bundle
from tests.containers.conftest import (
    ROOT,
    SHIPPED,
    inspect,
    kill,
    new_repository,
    podman,
    publish,
    publish_wrong,
    run,
    until,
    version_served,
)
from tests.deploy.conftest import KUBERNETES
from tests.deploy.manifests import Document, Manifests, quantity, render

NETWORK = "cluster"


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    kubectl = shutil.which("kubectl")
    assert kubectl, "kubectl is not on PATH: run this by make image-check"
    return render(KUBERNETES / "overlays" / "cpu", kubectl)


@pytest.fixture(scope="module")
def claim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_repository(tmp_path_factory.mktemp("claim"))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An API key, and the folder of the secret with its hash."""
    folder = tmp_path_factory.mktemp("secret")
    return run(sys.executable, "-m", "gateway.keys", "me", "--file", folder / "keys").strip(), folder


class Pod:
    """A pod of a deployment, at the name of `service` if one is given. `folders` are those of its claims and secrets,
    `changes` values of config maps."""

    def __init__(
        self,
        manifests: Manifests,
        deployment: str,
        name: str,
        folders: dict[str, Path],
        work: Path,
        service: str | None = None,
        **changes: str,
    ) -> None:
        self._manifests, self._spec, self.name = manifests, manifests.pod(deployment), name
        self._folders, self._work, self._changes = folders, work, changes
        work.mkdir()
        aliases = ["--network-alias", service] if service else []
        podman("pod", "create", "--name", name, "--network", NETWORK, *aliases)

    def prepare(self, fails: bool = False) -> str:
        """Runs the init containers to their ends; those that stay are started."""
        printed = ""
        for container in self._spec.get("initContainers", []):
            if container.get("restartPolicy") == "Always":
                self._start(container)
            else:
                printed += podman("run", "--rm", *self._options(container), *self._command(container), fails=fails)
        return printed

    def start(self) -> None:
        """Starts the containers; returns when their startup probes pass."""
        for container in self._spec["containers"]:
            self._start(container)
            startup = container["startupProbe"]
            budget_s = startup["periodSeconds"] * startup["failureThreshold"]
            until(
                lambda of=container: self.passes(of["startupProbe"], of), budget_s, lambda of=container: self.logs(of)
            )

    def is_ready(self) -> bool:
        return all(self.passes(each["readinessProbe"], each) for each in self._spec["containers"])

    def is_live(self) -> bool:
        return all(self.passes(each["livenessProbe"], each) for each in self._spec["containers"])

    def passes(self, probe: Document, container: Document) -> bool:
        """Asks as the kubelet does: from outside, at the pod's address."""
        if "grpc" in probe:
            with grpc.insecure_channel(f"{self.address}:{probe['grpc']['port']}") as channel:
                try:
                    return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=1) == b"\x08\x01"
                except grpc.RpcError:
                    return False
        port = probe["httpGet"]["port"]
        ports = {each["name"]: each["containerPort"] for each in container.get("ports", [])}
        url = f"http://{self.address}:{ports.get(port, port)}{probe['httpGet']['path']}"
        try:
            return 200 <= httpx.get(url, timeout=probe.get("timeoutSeconds", 1)).status_code < 400
        except httpx.HTTPError:
            return False

    @property
    def address(self) -> str:
        infra = podman("pod", "inspect", "--format", "{{.InfraContainerID}}", self.name).strip()
        return inspect(infra)["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]

    def container(self, name: str) -> str:
        return f"{self.name}-{name}"

    def logs(self, container: Document) -> str:
        return podman("logs", "--tail", "30", self.container(container["name"]))

    def remove(self) -> None:
        podman("pod", "rm", "--force", "--time", "5", self.name)

    def _start(self, container: Document) -> None:
        named = ["--detach", "--restart", "always", "--name", self.container(container["name"])]
        podman("run", *named, *self._options(container), *self._command(container))

    def _options(self, container: Document) -> list[str]:
        pod, own = self._spec["securityContext"], container["securityContext"]
        assert (own["allowPrivilegeEscalation"], own["capabilities"]) == (False, {"drop": ["ALL"]})
        options = ["--pod", self.name, "--user", f"{pod['runAsUser']}:{pod['runAsGroup']}"]
        options += ["--group-add", str(pod["fsGroup"]), "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        if own["readOnlyRootFilesystem"]:
            options += ["--read-only", "--read-only-tmpfs=false"]
        options += [f"--memory={int(quantity(container['resources']['limits']['memory']))}"]
        options += [f"--cpu-shares={int(1024 * quantity(container['resources']['requests']['cpu']))}"]
        for name, value in self._environment(container).items():
            options += ["--env", f"{name}={value}"]
        volumes = {volume["name"]: volume for volume in self._spec["volumes"]}
        for mount in container["volumeMounts"]:
            options.append(self._mounted(volumes[mount["name"]], mount, pod["fsGroup"]))
        return options

    def _mounted(self, volume: Document, mount: Document, group: int) -> str:
        at = mount["mountPath"]
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            return f"--mount=type=tmpfs,destination={at},tmpfs-mode=1777"
        if "emptyDir" in volume:
            folder = self._work / volume["name"]
            folder.mkdir(exist_ok=True)
            os.chown(folder, 0, group)
            folder.chmod(0o2777)
        elif "secret" in volume:
            folder = self._folders[volume["secret"]["secretName"]]
            folder.chmod(0o755)
            for file in folder.iterdir():
                os.chown(file, 0, group)
                file.chmod(volume["secret"]["defaultMode"])
        else:
            folder = self._folders[volume["persistentVolumeClaim"]["claimName"]]
        return f"--volume={folder}:{at}{':ro' if mount.get('readOnly') else ''}"

    def _environment(self, container: Document) -> dict[str, str]:
        values = {}
        for source in container.get("envFrom", []):
            values |= self._manifests.get("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            reference = variable["valueFrom"]["configMapKeyRef"]
            values[variable["name"]] = self._manifests.get("ConfigMap", reference["name"])["data"][reference["key"]]
        return {name: self._changes.get(name, value) for name, value in values.items()}

    def _command(self, container: Document) -> list[str]:
        """`$(NAME)` is a variable's value, `$$` a dollar, as the kubelet reads them."""
        values = self._environment(container)

        def read(word: str) -> str:
            return re.sub(r"\$\$|\$\((\w+)\)", lambda match: values[match[1]] if match[1] else "$", word)

        image = container["image"]
        if "referent-" in image:
            image = f"localhost/{re.search(r'referent-[a-z]+', image)[0]}"
        command, arguments = ([read(word) for word in container.get(key, [])] for key in ("command", "args"))
        entrypoint = [f"--entrypoint={command[0]}"] if command else []
        return [*entrypoint, re.sub(r"@sha256:\w+", "", image), *command[1:], *arguments]


@pytest.fixture(scope="module")
def folders(claim: Path, key: tuple[str, Path]) -> dict[str, Path]:
    return {"model-repository": claim, "gateway-keys": key[1]}


@pytest.fixture(scope="module")
def triton(
    gateway_image: str, manifests: Manifests, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pod]:
    podman("network", "create", NETWORK)
    pod = Pod(manifests, "triton", "triton-1", folders, tmp_path_factory.mktemp("pods") / "pod", "triton")
    assert "files are as published" in pod.prepare()
    pod.start()
    until(pod.is_ready)
    yield pod
    pod.remove()


@pytest.fixture(scope="module")
def gateway(
    triton: Pod, manifests: Manifests, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pod]:
    pod = Pod(manifests, "gateway", "gateway-1", folders, tmp_path_factory.mktemp("pods") / "pod", "gateway")
    pod.prepare()
    pod.start()
    until(pod.is_ready)
    yield pod
    pod.remove()


def test_pods_pass_their_probes_and_answer(triton: Pod, gateway: Pod, key: tuple[str, Path]) -> None:
    assert version_served(f"http://{gateway.address}:8000", key[0]) == SHIPPED
    assert all(pod.is_ready() and pod.is_live() for pod in (triton, gateway))


@pytest.mark.parametrize("digest", ["sha256:0", "sha256:" + "0" * 64], ids=["no digest", "another's digest"])
def test_init_container_refuses_what_is_not_published(
    triton: Pod, manifests: Manifests, folders: dict[str, Path], tmp_path: Path, digest: str
) -> None:
    pod = Pod(manifests, "triton", "refused", folders, tmp_path / "pod", DIGEST=digest)
    try:
        assert "no version of 'mini'" in pod.prepare(fails=True)
    finally:
        pod.remove()


def test_version_rolls_and_one_of_wrong_answers_never_gets_ready(
    triton: Pod,
    gateway: Pod,
    manifests: Manifests,
    folders: dict[str, Path],
    key: tuple[str, Path],
    tmp_path: Path,
) -> None:
    claim, url = folders["model-repository"], f"http://{gateway.address}:8000"
    right, wrong = publish(claim), publish_wrong(claim, tmp_path)
    refused = Pod(manifests, "triton", "triton-wrong", folders, tmp_path / "refused", DIGEST=wrong)
    added = Pod(manifests, "triton", "triton-2", folders, tmp_path / "added", DIGEST=right)
    try:
        for pod in (refused, added):
            pod.prepare()
            pod.start()
        until(added.is_ready)
        assert not refused.is_ready()
        assert version_served(url, key[0]) == SHIPPED
    finally:
        refused.remove()
        added.remove()


def test_killed_triton_is_unready_until_it_serves_again(triton: Pod, gateway: Pod, key: tuple[str, Path]) -> None:
    before = inspect(triton.container("triton"))["State"]["Pid"]
    kill(triton.container("triton"))
    until(lambda: inspect(triton.container("triton"))["State"]["Pid"] not in (0, before))
    until(lambda: triton.is_ready() and triton.is_live() and gateway.is_ready())
    until(lambda: version_served(f"http://{gateway.address}:8000", key[0]) == SHIPPED)


def test_frozen_model_fails_the_liveness_probe(triton: Pod, gateway: Pod, key: tuple[str, Path]) -> None:
    """The kubelet starts Triton again then; here a kill does."""
    stubs = podman("top", triton.container("triton"), "hpid", "args").splitlines()
    [frozen] = [line.split()[0] for line in stubs if "stub" in line and "mini_language_model" in line]
    subprocess.run(["kill", "-STOP", frozen], check=True)
    until(lambda: not triton.is_live() and not triton.is_ready())
    subprocess.run(["kill", "-KILL", frozen], check=True)
    kill(triton.container("triton"))
    until(lambda: triton.is_ready() and triton.is_live() and gateway.is_ready())


def test_export_job_publishes_a_checkpoint(export_image: str, tmp_path: Path) -> None:
    """The job as it is written, on a checkpoint with random weights that its own image makes."""
    job = yaml.safe_load((KUBERNETES / "export.yaml").read_text())["spec"]["template"]["spec"]
    [container] = job["containers"]
    folders = {"checkpoint": tmp_path / "checkpoint", "model-repository": tmp_path / "models"}
    for folder in folders.values():
        folder.mkdir()
        os.chown(folder, 65534, 65534)
    making = """
from pathlib import Path
from benchmarks.lib.checkpoints import save_random
from referent.core.bundle import load_bundle
from referent.core.spec import ModelSpec
from referent.modeling.checkpoint import CheckpointSpec
bundle, _ = load_bundle(Path("/mini"), "mini")
spec = CheckpointSpec(**{name: getattr(bundle, name) for name in ModelSpec.model_fields}, base="base")
save_random(Path("/checkpoint"), spec, Path("/mini/mini", bundle.version, "tokenizer.json"))
"""
    sources = [f"--volume={ROOT}/benchmarks:/app/benchmarks:ro", f"--volume={ROOT}/model_repository:/mini:ro"]
    made = f"--volume={folders['checkpoint']}:/checkpoint"
    podman("run", "--rm", *sources, made, "--entrypoint", "python", export_image, "-c", making)
    pod, mounts = job["securityContext"], []
    for mount in container["volumeMounts"]:
        if mount["name"] in folders:
            source = folders[mount["name"]]
            mounts.append(f"--volume={source}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}")
        else:
            mounts.append(f"--tmpfs={mount['mountPath']}")
    locked = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    locked += ["--user", f"{pod['runAsUser']}:{pod['runAsGroup']}", "--network=none"]
    podman("run", "--rm", *locked, *mounts, export_image, *container["args"])
    name = container["args"][container["args"].index("--name") + 1]
    assert load_bundle(folders["model-repository"], name)[0].dtype == "fp16"
