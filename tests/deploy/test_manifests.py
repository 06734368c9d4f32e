"""The Kubernetes manifests: rendered, valid by the schemas, as promised; and wrong edits to them are found."""

import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.deploy.conftest import KUBERNETES, OVERLAYS, ROOT, kustomizers, run, tool
from tests.deploy.manifests import CHECKS, Manifests, render

VERSIONS = ("1.35", "1.36", "1.37")  # that the Kubernetes project supports
CUSTOM = {"PodMonitor", "PrometheusRule"}  # the Prometheus Operator's: no schema of Kubernetes


@pytest.fixture(scope="module", params=[(o, k) for o in OVERLAYS for k in kustomizers()], ids="-".join)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    overlay, kubectl = request.param
    return render(KUBERNETES / "overlays" / overlay, tool(kubectl))


@pytest.mark.parametrize("check", CHECKS)
def test_promise_holds(manifests: Manifests, check: str) -> None:
    CHECKS[check](manifests)


@pytest.mark.parametrize("version", VERSIONS)
def test_documents_are_valid_by_the_schemas(manifests: Manifests, version: str) -> None:
    validated = [document for document in manifests.documents if document["kind"] not in CUSTOM]
    for document in validated:
        kubernetes_validate.validate(document, version, strict=True)
    assert len(validated) == len(manifests.documents) - 3
    validated[0]["metadata"]["nmae"] = "wrong"
    with pytest.raises(kubernetes_validate.ValidationError):  # the control
        kubernetes_validate.validate(validated[0], version, strict=True)
    del validated[0]["metadata"]["nmae"]


def test_everything_lives_in_the_namespace(manifests: Manifests) -> None:
    for document in manifests.documents:
        if document["kind"] not in ("Namespace", "PriorityClass"):
            assert document["metadata"]["namespace"] == "referent", document["metadata"]["name"]


@pytest.mark.parametrize("version", VERSIONS)
def test_export_job_is_valid_and_asks_what_the_command_takes(version: str) -> None:
    job = yaml.safe_load((KUBERNETES / "export.yaml").read_text())
    kubernetes_validate.validate(job, version, strict=True)
    [container] = job["spec"]["template"]["spec"]["containers"]
    checkpoint, *options = container["args"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert (mounts[checkpoint], mounts[options[options.index("--to") + 1]]) == (True, False)
    source = (ROOT / "export/build.py").read_text()  # importing it takes torch
    assert all(f'"{option}"' in source for option in options if option.startswith("--"))


def test_checkov_finds_nothing_in_the_export_job() -> None:
    file = KUBERNETES / "export.yaml"
    run(tool("checkov"), "--file", file, "--config-file", ROOT / "deploy/checkov.yaml", "--framework", "kubernetes")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_checkov_finds_nothing_but_what_is_justified(overlay: str, tmp_path: Path) -> None:
    rendered = tmp_path / "manifests.yaml"
    documents = render(KUBERNETES / "overlays" / overlay, tool("kubectl")).documents
    rendered.write_text(yaml.safe_dump_all(documents))
    run(tool("checkov"), "--file", rendered, "--config-file", ROOT / "deploy/checkov.yaml", "--framework", "kubernetes")


WRONG_EDITS = {
    "port": ("triton.yaml", "containerPort: 8001", "containerPort: 8011"),
    "selector": ("gateway.yaml", "  selector: {app.kubernetes.io/name: referent, app.kubernetes.io/component: gateway}",
                 "  selector: {app.kubernetes.io/name: referent, app.kubernetes.io/component: gatewey}"),
    "probe path": ("gateway.yaml", "path: /readyz", "path: /ready"),
    "metric name": ("autoscaling.yaml", "referent_triton_pending_requests", "referent_triton_pending"),
    "missing limit": ("triton.yaml", '            limits: {cpu: "4", memory: 4Gi}\n', ""),
    "root user": ("gateway.yaml", "runAsUser: 65534", "runAsUser: 0"),
    "grace below drain": ("gateway.yaml", "terminationGracePeriodSeconds: 45", "terminationGracePeriodSeconds: 25"),
    "open network policy": ("network.yaml", "      ports: [{protocol: TCP, port: 8000}]", "    - {}"),
    "metadata in reach": ("network.yaml", "  egress: []", "  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"),
    "another model verified": ("triton.yaml", "args: [/models, $(MODEL), --digest", "args: [/models, mini, --digest"),
    "any digest": ("triton.yaml", " --digest=$(DIGEST),", ""),
    "another repository served": ("triton.yaml", "--model-repository=/private/models", "--model-repository=/models"),
    "no device": ("kustomization.yaml", "DEVICE=cpu", "DEVICE=gpu"),
    "another model watched": ("triton.yaml", "args: [/models, $(MODEL), --grpc", "args: [/models, mini, --grpc"),
    "liveness that says ready": ("triton.yaml", "grpc: {port: 8001}", "httpGet: {path: /ready, port: 8003}"),
    "sidecar that ends": ("triton.yaml", "          restartPolicy: Always  # runs beside Triton\n", ""),
    "control left open": ("triton.yaml", "--grpc-restricted-protocol=model-repository,", "--grpc-restricted-protocol="),
    "start-up too short": ("triton.yaml", "failureThreshold: 24", "failureThreshold: 0"),
    "unknown setting": ("kustomization.yaml", "REFERENT_DRAIN_GRACE_S", "REFERENT_DRAIN_GRACE"),
}  # fmt: skip


@pytest.mark.parametrize("edit", WRONG_EDITS)
def test_wrong_edit_breaks_a_promise(tmp_path: Path, edit: str) -> None:
    name, right, wrong = WRONG_EDITS[edit]
    copy = shutil.copytree(KUBERNETES.parent, tmp_path / "deploy") / "kubernetes"
    file = copy / "base" / name
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    manifests = render(copy / "overlays" / "cpu", tool("kubectl"))
    broken = []
    for promise, check in CHECKS.items():
        try:
            check(manifests)
        except (AssertionError, KeyError, ValueError):
            broken.append(promise)
    print(edit, broken)
    assert broken
