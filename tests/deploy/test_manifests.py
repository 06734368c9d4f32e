"""The Kubernetes manifests: rendered, valid by the schemas, as promised; and wrong edits to them are found."""

import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.deploy.conftest import KUBERNETES, OVERLAYS, ROOT, kustomizers, run, tool
from tests.deploy.manifests import CHECKS, Manifests, check_export_job, render

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
    check_export_job(job)
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
    "pool of 64 MB": ("triton.yaml", "            - --cuda-memory-pool-byte-size=0:1073741824", "            #"),
    "pool too small": ("triton.yaml", "=0:1073741824", "=0:67108864"),
    "pool of another GPU": ("triton.yaml", "=0:1073741824", "=1:1073741824"),
    "disk not asked for": ("gateway.yaml", ", ephemeral-storage: 2Gi", ""),
    "disk of a larger /tmp": ("triton.yaml", "emptyDir: {sizeLimit: 1Gi}", "emptyDir: {sizeLimit: 100Gi}"),
    "monitor that nobody selects": ("monitoring.yaml", "  labels: {release: kube-prometheus-stack}\n", ""),
    "rules that nobody selects": ("rules.yaml", "{release: kube-prometheus-stack}", "{release: prometheus}"),
    "tag that moves": ("kustomization.yaml", "newTag: 0.1.0", "newTag: latest"),
    "digest cut off": ("triton.yaml", "tritonserver:26.07-py3", "tritonserver:26.07-py3@sha256:0123"),
    "node of 32 GiB": ("../overlays/gpu/triton.yaml", "memory: 28Gi", "memory: 32Gi"),
    "any GPU": ("../overlays/gpu/triton.yaml", "operator: Gt", "operator: Lt"),
    "GPU too small": ("../overlays/gpu/triton.yaml", '["20000"]', '["15000"]'),
    "surge on GPUs": ("../overlays/gpu/triton.yaml", "{maxSurge: 0, maxUnavailable: 1}", "{maxSurge: 1}"),
    "key that is known": ("triton.yaml", "admin=$$(cat /proc/sys/kernel/random/uuid)", "admin=secret"),
    "Triton as root": ("triton.yaml", "        runAsUser: 10000\n", ""),
    "all models": ("triton.yaml", "- --allow-http=false", "- --allow-http=false\n            - --load-model=*"),
    "HTTP after all": ("triton.yaml", "- --allow-http=false", "- --allow-http=false\n            - --allow-http=true"),
    "no GPU": ("../overlays/gpu/triton.yaml", 'nvidia.com/gpu: "1"', 'nvidia.com/gpu: "0"'),
    "GPU's start-up too short": ("../overlays/gpu/triton.yaml", "failureThreshold: 60", "failureThreshold: 1"),
    "ready before the golden inference": ("triton.yaml", "httpGet: {path: /ready, port: 8003}", "grpc: {port: 8001}"),
    "gateway out of reach": ("network.yaml", "metadata.name: ingress}", "metadata.name: egress}"),
    "gateway without /tmp": ("gateway.yaml", "            - {name: tmp, mountPath: /tmp}\n", ""),
    "Triton without /tmp": ("triton.yaml", "            - {name: tmp, mountPath: /tmp}\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("edit", WRONG_EDITS)
def test_wrong_edit_breaks_a_promise(tmp_path: Path, edit: str) -> None:
    name, right, wrong = WRONG_EDITS[edit]
    copy = shutil.copytree(KUBERNETES.parent, tmp_path / "deploy") / "kubernetes"
    file = copy / "base" / name
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    manifests = render(copy / "overlays" / ("gpu" if "gpu" in name else "cpu"), tool("kubectl"))
    broken = []
    for promise, check in CHECKS.items():
        try:
            check(manifests)
        except (AssertionError, KeyError, ValueError):
            broken.append(promise)
    print(edit, broken)
    assert broken


WRONG_EDITS_OF_THE_JOB = {
    "disk not asked for": (", ephemeral-storage: 3Gi", ""),
    "disk of a larger /tmp": ("{sizeLimit: 2Gi}", "{sizeLimit: 100Gi}"),
    "node of 32 GiB": ("memory: 28Gi", "memory: 32Gi"),
    "tag that moves": ("referent-export:0.1.0", "referent-export:latest"),
}


@pytest.mark.parametrize("edit", WRONG_EDITS_OF_THE_JOB)
def test_wrong_edit_of_the_export_job_is_found(edit: str) -> None:
    text, (right, wrong) = (KUBERNETES / "export.yaml").read_text(), WRONG_EDITS_OF_THE_JOB[edit]
    assert right in text
    with pytest.raises(AssertionError):
        check_export_job(yaml.safe_load(text.replace(right, wrong)))
