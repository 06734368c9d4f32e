"""Rendered manifests, and what must hold in them: each function `check_...` asserts one promise."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from gateway.app import create_app
from gateway.settings import Settings
from tests.deploy.conftest import ROOT

Document = dict[str, Any]
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9}
LOAD_BYTES_PER_S = 50e6  # of a slow network disk
DNS_TTL_S = 5  # CoreDNS's, of a service
DIGEST = r"(?:@sha256:[0-9a-f]{64})?"  # what make pin writes
# what a Prometheus of that chart selects by, unless it is told otherwise
OPERATOR = {"release": "kube-prometheus-stack"}
NODE_BYTES = 29 * 2**30  # that a node of 32 GiB has to give, the system's part taken off


def render(overlay: Path, kubectl: str) -> "Manifests":
    """What `kubectl apply --kustomize` would send."""
    done = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Manifests(list(yaml.safe_load_all(done.stdout)))


class Manifests:
    """The documents of an overlay."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def of(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def get(self, kind: str, name: str) -> Document:
        [found] = [document for document in self.of(kind) if document["metadata"]["name"] == name]
        return found

    def pod(self, deployment: str) -> Document:
        return self.get("Deployment", deployment)["spec"]["template"]["spec"]

    def container(self, deployment: str) -> Document:
        [container] = self.pod(deployment)["containers"]
        return container

    def selected(self, labels: dict[str, str]) -> list[str]:
        """Deployments whose pods have the labels."""
        return [
            deployment["metadata"]["name"]
            for deployment in self.of("Deployment")
            if labels.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        ]

    def settings(self) -> Settings:
        """The gateway's, as its environment sets them; raises for a variable or value that it would refuse."""
        container = self.container("gateway")
        [source] = container["envFrom"]
        values = dict(self.get("ConfigMap", source["configMapRef"]["name"])["data"])
        for variable in container["env"]:
            reference = variable["valueFrom"]["configMapKeyRef"]
            values[variable["name"]] = self.get("ConfigMap", reference["name"])["data"][reference["key"]]
        return Settings(**{name.removeprefix("REFERENT_").lower(): value for name, value in values.items()})


def quantity(text: str | int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) * UNITS[unit]


def ports_of(container: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def probes_of(container: Document) -> list[Document]:
    return [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]


def argument(container: Document, name: str) -> str:
    [value] = [text.removeprefix(f"--{name}=") for text in container["args"] if text.startswith(f"--{name}=")]
    return value


def check_everything_selects_the_pods_of_its_name(manifests: Manifests) -> None:
    for deployment in manifests.of("Deployment"):
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        constraints = spec["template"]["spec"]["topologySpreadConstraints"]
        selectors = [spec["selector"], *(constraint["labelSelector"] for constraint in constraints)]
        others = [manifests.get(kind, name)["spec"] for kind in ("PodDisruptionBudget", "PodMonitor")]
        labels = [selector["matchLabels"] for selector in (*selectors, *(other["selector"] for other in others))]
        labels.append(manifests.get("Service", name)["spec"]["selector"])
        labels.append(manifests.get("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"])
        assert [manifests.selected(each) for each in labels] == [[name]] * len(labels)
        assert manifests.get("HorizontalPodAutoscaler", name)["spec"]["scaleTargetRef"]["name"] == name
        assert "replicas" not in spec, "the autoscaler's business"


def check_ports_are_those_that_the_code_listens_at(manifests: Manifests) -> None:
    gateway, triton, settings = manifests.container("gateway"), manifests.container("triton"), manifests.settings()
    assert ports_of(gateway) == {"http": settings.port, "metrics": settings.metrics_port}
    assert ports_of(triton) == {name: int(argument(triton, f"{name}-port")) for name in ("grpc", "metrics")}
    for name, container in (("gateway", gateway), ("triton", triton)):
        for port in manifests.get("Service", name)["spec"]["ports"]:
            assert port["targetPort"] in ports_of(container)
        for endpoint in manifests.get("PodMonitor", name)["spec"]["podMetricsEndpoints"]:
            assert endpoint["port"] == "metrics"
    [path] = manifests.get("Ingress", "gateway")["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "gateway", "port": {"name": "http"}}


def check_gateway_finds_every_triton(manifests: Manifests) -> None:
    service = manifests.get("Service", "triton")["spec"]
    assert service["clusterIP"] == "None", "one address for all would send everything to one pod"
    [port] = service["ports"]
    assert manifests.settings().triton_url == f"dns:///triton:{port['port']}"
    assert port["port"] == ports_of(manifests.container("triton"))[port["targetPort"]]


def check_probes_ask_what_is_served(manifests: Manifests) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    gateway, triton = manifests.container("gateway"), manifests.container("triton")
    for probe in probes_of(gateway):
        assert probe["httpGet"]["path"] in paths
        assert probe["httpGet"]["port"] == "http"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/livez", "a Triton that is away is no reason to restart"
    startup, ready, live = probes_of(triton)
    assert startup["grpc"]["port"] == ports_of(triton)["grpc"]
    [sidecar] = [each for each in manifests.pod("triton")["initContainers"] if each["name"] == "liveness"]
    assert sidecar["restartPolicy"] == "Always", "the pod would wait for its end"
    assert sidecar["command"] == ["python", "-m", "referent.triton.liveness"]
    repository, model, grpc, metrics, port = sidecar["args"]
    assert (repository, model) == ("/models", argument(triton, "load-model"))
    assert grpc == f"--grpc=127.0.0.1:{ports_of(triton)['grpc']}"
    assert metrics == f"--metrics=http://127.0.0.1:{ports_of(triton)['metrics']}/metrics"
    port = int(port.removeprefix("--port="))
    assert (ready["httpGet"], live["httpGet"]) == ({"path": "/ready", "port": port}, {"path": "/live", "port": port})


def check_pods_outlive_their_drain(manifests: Manifests) -> None:
    settings, triton = manifests.settings(), manifests.container("triton")
    drains = {
        "gateway": settings.drain_grace_s + settings.deadline_s,
        "triton": float(argument(triton, "exit-timeout-secs")),
    }
    for name, seconds in drains.items():
        before = manifests.container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert manifests.pod(name)["terminationGracePeriodSeconds"] > before + seconds
    reconnected = max(settings.triton_reconnect_s, settings.deadline_s) + DNS_TTL_S
    assert triton["lifecycle"]["preStop"]["sleep"]["seconds"] > reconnected, "gateways would still ask it"


def check_pods_are_locked_down(manifests: Manifests) -> None:
    for deployment in manifests.of("Deployment"):
        name, pod = deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        # their root is read-only
        assert {"name": "tmp", "mountPath": "/tmp"} in manifests.container(name)["volumeMounts"]
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def check_resources_are_set(manifests: Manifests) -> None:
    for deployment in manifests.of("Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            requests, limits = (container["resources"].get(kind, {}) for kind in ("requests", "limits"))
            assert {"cpu", "memory"} <= requests.keys() & limits.keys(), container["name"]
            assert all(quantity(asked) <= quantity(limits.get(name, asked)) for name, asked in requests.items())
    held = manifests.settings().max_inflight_bytes
    assert quantity(manifests.container("gateway")["resources"]["limits"]["memory"]) > 2 * held


def check_network_is_closed_but_for_what_is_needed(manifests: Manifests) -> None:
    closed = manifests.get("NetworkPolicy", "default-deny")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policies = {name: manifests.get("NetworkPolicy", name)["spec"] for name in ("triton", "gateway")}
    assert len(manifests.of("NetworkPolicy")) == 3
    assert policies["triton"].get("egress", []) == []
    peers = {
        (name, direction, port["port"]): _peer(manifests, peer)
        for name, policy in policies.items()
        for direction, key in (("ingress", "from"), ("egress", "to"))
        for rule in policy.get(direction, [])
        for peer in rule[key]
        for port in rule["ports"]
    }
    gateway, triton = ports_of(manifests.container("gateway")), ports_of(manifests.container("triton"))
    assert peers == {
        ("triton", "ingress", triton["grpc"]): "gateway",
        ("triton", "ingress", triton["metrics"]): "monitoring/prometheus",
        ("gateway", "ingress", gateway["http"]): "ingress/*",
        ("gateway", "ingress", gateway["metrics"]): "monitoring/prometheus",
        ("gateway", "egress", triton["grpc"]): "triton",
        ("gateway", "egress", 53): "kube-system/kube-dns",
    }


def _peer(manifests: Manifests, peer: Document) -> str:
    assert "ipBlock" not in peer
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    if "namespaceSelector" not in peer:
        [name] = manifests.selected(labels)
        return name
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    return f"{namespace}/{next(iter(labels.values()), '*')}"


def check_bundle_is_verified_before_it_is_loaded(manifests: Manifests) -> None:
    pod, triton = manifests.pod("triton"), manifests.container("triton")
    verify, sidecar = pod["initContainers"]
    assert verify["command"] == ["python", "-m", "referent.triton.repository"]
    private = f"--to={argument(triton, 'model-repository')}"
    model = argument(triton, "load-model")
    assert verify["args"] == ["/models", model, "--digest=$(DIGEST)", "--device=$(DEVICE)", private]
    assert verify["env"] == triton["env"] == sidecar["env"]
    assert verify["image"] == sidecar["image"] == manifests.container("gateway")["image"]
    [made] = [mount for mount in verify["volumeMounts"] if mount["name"] == "private-repository"]
    [served] = [mount for mount in triton["volumeMounts"] if mount["name"] == "private-repository"]
    assert (made, served) == ({k: v for k, v in served.items() if k != "readOnly"}, made | {"readOnly": True})
    assert Path(argument(triton, "model-repository")).parent == Path(made["mountPath"])
    [reference] = [each["valueFrom"]["configMapKeyRef"] for each in triton["env"] if each["name"] == "DEVICE"]
    device = manifests.get("ConfigMap", reference["name"])["data"]["DEVICE"]
    assert device == ("gpu" if "nvidia.com/gpu" in triton["resources"]["limits"] else "cpu")
    for name in ("gateway", "triton"):
        mounts = [m for c in (manifests.container(name), verify, sidecar) for m in c["volumeMounts"]]
        assert {m["mountPath"] for m in mounts if m["name"] == "model-repository" and m["readOnly"]} == {"/models"}
        [volume] = [volume for volume in manifests.pod(name)["volumes"] if volume["name"] == "model-repository"]
        assert volume["persistentVolumeClaim"] == {"claimName": "model-repository", "readOnly": True}
    settings = manifests.settings()
    assert str(settings.model_repository) == "/models"
    assert settings.models == {settings.default_model}


def check_triton_is_recent_and_takes_no_orders(manifests: Manifests) -> None:
    triton = manifests.container("triton")
    tag = re.search(rf":(\d\d)\.(\d\d)-py3{DIGEST}$", triton["image"])
    assert tag, triton["image"]
    year, month = map(int, tag.groups())
    assert (year, month) >= (26, 7), "the first with ONNX Runtime 1.27"
    control = "--grpc-restricted-protocol=model-repository,shared-memory,logging,trace"
    key = "admin=$$(cat /proc/sys/kernel/random/uuid)"
    assert triton["command"] == ["/bin/sh", "-c", f'exec tritonserver "$@" {control}:{key}', "tritonserver"]
    assert triton["args"] == [  # no other: it could undo one of these
        "--model-repository=/private/models",
        "--model-control-mode=explicit",
        "--load-model=$(MODEL)",
        "--disable-auto-complete-config",
        "--allow-http=false",
        "--grpc-port=8001",
        "--metrics-port=8002",
        "--exit-timeout-secs=30",
        "--cuda-memory-pool-byte-size=0:1073741824",
    ]
    for deployment in manifests.of("Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert re.search(rf":[\w.-]*\d[\w.-]*{DIGEST}$", container["image"]), f"{container['image']} is not pinned"


def check_triton_has_time_room_and_shared_memory(manifests: Manifests) -> None:
    deployment, triton = manifests.get("Deployment", "triton")["spec"], manifests.container("triton")
    size = int(deployment["template"]["metadata"]["annotations"]["referent/model-bytes"])
    budget_s = triton["startupProbe"]["periodSeconds"] * triton["startupProbe"]["failureThreshold"]
    assert budget_s > 2 * size / LOAD_BYTES_PER_S
    assert deployment["progressDeadlineSeconds"] > budget_s + size / LOAD_BYTES_PER_S  # the files are hashed before
    claim = manifests.get("PersistentVolumeClaim", "model-repository")["spec"]["resources"]["requests"]["storage"]
    assert quantity(claim) > 3 * size
    [mount] = [mount["name"] for mount in triton["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    [volume] = [volume["emptyDir"] for volume in manifests.pod("triton")["volumes"] if volume["name"] == mount]
    assert volume["medium"] == "Memory"
    memory = triton["resources"]["limits"]["memory"]
    assert quantity(volume["sizeLimit"]) < quantity(memory) / 2  # it counts as the pod's memory
    assert quantity(memory) > 2 * size


def check_gpus_have_room(manifests: Manifests) -> None:
    """For the weights and for what passes between the steps; and the node for the pod."""
    deployment, triton = manifests.get("Deployment", "triton")["spec"], manifests.container("triton")
    device, _, pool = argument(triton, "cuda-memory-pool-byte-size").partition(":")
    assert (device, int(pool) >= 2**30) == ("0", True), "some features would go through the host"
    if "nvidia.com/gpu" not in triton["resources"]["limits"]:
        return
    assert [triton["resources"][kind]["nvidia.com/gpu"] for kind in ("requests", "limits")] == ["1", "1"]
    needed = int(deployment["template"]["metadata"]["annotations"]["referent/model-bytes"]) + int(pool)
    affinity = manifests.pod("triton")["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [term] = affinity["nodeSelectorTerms"]
    [expression] = term["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("nvidia.com/gpu.memory", "Gt")
    assert int(expression["values"][0]) * 2**20 > 1.2 * needed
    assert quantity(triton["resources"]["requests"]["memory"]) < NODE_BYTES


def check_disk_is_asked_for_as_it_may_be_used(manifests: Manifests) -> None:
    for deployment in manifests.of("Deployment"):
        check_disk(deployment["spec"]["template"]["spec"])


def check_disk(pod: Document) -> None:
    """A pod that uses more of the node's disk than it requested is the first to be evicted."""
    empty = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
    used = sum(quantity(each["sizeLimit"]) for each in empty if each.get("medium") != "Memory")
    asked = [container["resources"]["requests"].get("ephemeral-storage", 0) for container in pod["containers"]]
    assert sum(map(quantity, asked)) > used, "a pod's disk is not asked for"


def check_prometheus_selects_monitors_and_rules(manifests: Manifests) -> None:
    for kind in ("PodMonitor", "PrometheusRule"):
        for document in manifests.of(kind):
            assert document["metadata"].get("labels") == OPERATOR, document["metadata"]["name"]


def check_export_job(job: Document) -> None:
    """deploy/kubernetes/export.yaml, which no overlay renders."""
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    check_disk(pod)
    assert quantity(container["resources"]["requests"]["memory"]) < NODE_BYTES
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert re.search(rf":[\w.-]*\d[\w.-]*{DIGEST}$", container["image"]), "not pinned"


def check_keys_are_asked_for(manifests: Manifests) -> None:
    settings = manifests.settings()
    assert not settings.open_access
    [mount] = [m for m in manifests.container("gateway")["volumeMounts"] if m["name"] == "keys"]
    assert settings.keys_file == Path(mount["mountPath"], "keys")
    assert "subPath" not in mount, "a rotated key would not arrive"


def check_autoscaling_follows_metrics_that_are_recorded(manifests: Manifests) -> None:
    adapter = yaml.safe_load((ROOT / "deploy/prometheus/adapter.yml").read_text())["rules"]["custom"]
    series = {rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in adapter}
    [rules] = manifests.of("PrometheusRule")
    recorded = {rule.get("record") for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert set(series.values()) <= recorded
    followed = {}
    for scaler in manifests.of("HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        assert 2 <= spec["minReplicas"] < spec["maxReplicas"]
        assert all("stabilizationWindowSeconds" in spec["behavior"][way] for way in ("scaleUp", "scaleDown"))
        metrics = [metric["pods"] for metric in spec["metrics"]]
        followed |= {each["metric"]["name"]: quantity(each["target"]["averageValue"]) for each in metrics}
    assert followed.keys() == series.keys()
    assert followed["referent_gateway_inflight_requests"] < manifests.settings().max_inflight_requests


def check_a_lost_node_or_rollout_leaves_pods(manifests: Manifests) -> None:
    for deployment in manifests.of("Deployment"):
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        on_gpu = "nvidia.com/gpu" in manifests.container(name)["resources"]["limits"]
        surge = {"maxSurge": 0, "maxUnavailable": 1} if on_gpu else {"maxSurge": 1, "maxUnavailable": 0}
        assert spec["strategy"]["rollingUpdate"] == surge
        assert manifests.get("PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
        pod = spec["template"]["spec"]
        keys = {constraint["topologyKey"] for constraint in pod["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        assert pod["priorityClassName"] in {each["metadata"]["name"] for each in manifests.of("PriorityClass")}


def check_ingress_has_the_gateways_limits(manifests: Manifests) -> None:
    ingress, settings = manifests.get("Ingress", "gateway"), manifests.settings()
    annotations = {name.partition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    megabytes = int(annotations["client-max-body-size"].removesuffix("m"))
    assert settings.max_body_bytes <= megabytes * 2**20 < settings.max_body_bytes * 1.1
    for timeout in ("proxy-read-timeout", "proxy-send-timeout"):
        assert settings.deadline_s < int(annotations[timeout].removesuffix("s")) <= 2 * settings.deadline_s
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]]


def check_rules_are_those_of_compose(manifests: Manifests) -> None:
    [rules] = manifests.of("PrometheusRule")
    ours = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    words = [json.dumps(groups, sort_keys=True).replace("\\n", " ").split() for groups in (rules["spec"], ours)]
    assert words[0] == words[1]


OTHERS = ("check_disk", "check_export_job")
CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_") and name not in OTHERS}
