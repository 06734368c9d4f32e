"""Rules, alerts, autoscaling series and dashboard: right by promtool, and of metrics that the programs export."""

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client import generate_latest

from gateway.app import create_app
from gateway.errors import TABLE
from gateway.settings import Settings
from gateway.telemetry import SECONDS
from runtime.launcher import TritonServer
from tests.deploy.conftest import ROOT, run, tool
from tests.support.tiny import MODEL_REPOSITORY

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
METRIC = re.compile(r"\b(?:referent|nv)[_:][a-z0-9_:]+")
# exported where there is a GPU only; from the Metrics page of Triton's user guide
OF_GPUS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
# of models that write their answers; tests/system/test_generator.py reads them from Triton
OF_GENERATORS = {f"referent_generator_{name}" for name in ("waiting", "active", "passes_total", "tokens_total")} | {
    "referent_generator_cache_bytes"
}


def expressions() -> dict[str, str]:
    """Every PromQL expression that ships, by where it stands."""
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules}
    for panel in DASHBOARD["panels"]:
        found |= {f"{panel['title']}, {target['refId']}": target["expr"] for target in panel.get("targets", [])}
    adapter = yaml.safe_load((PROMETHEUS / "adapter.yml").read_text())["rules"]["custom"]
    return found | {rule["name"]["as"]: rule["seriesQuery"] for rule in adapter}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of the series that the gateway, a real Triton and the recording rules bring."""
    with TritonServer(MODEL_REPOSITORY, ["mini"]) as server:
        metrics = generate_latest().decode() + httpx.get(server.metrics_url).text
    names = set(re.findall(r"^([a-z][a-z0-9_]+)[{ ]", metrics, re.MULTILINE))
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)", metrics, re.MULTILINE):  # no series yet where labels are open
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    return names | recorded | OF_GPUS | OF_GENERATORS


def test_every_metric_that_is_asked_for_is_exported(exported: set[str]) -> None:
    unknown = {where: set(METRIC.findall(text)) - exported for where, text in expressions().items()}
    assert not {where: names for where, names in unknown.items() if names}
    assert "referent_requests_totals" not in exported  # the control


def test_buckets_and_reasons_of_the_rules_are_the_codes() -> None:
    text = (PROMETHEUS / "rules.yml").read_text()
    assert {float(bound) for bound in re.findall(r'le="([\d.]+)"', text)} <= {float(bound) for bound in SECONDS}
    assert set(re.findall(r'reason="([\w-]+)"', text)) <= {kind.slug for kind in TABLE.values()}
    routes = set(re.findall(r'route=~"([^"]+)"', text))
    assert {route for each in routes for route in each.split("|")} <= create_app(Settings()).openapi()["paths"].keys()


def test_rules_and_configuration_are_valid() -> None:
    run(tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "rules.yml")
    run(tool("promtool"), "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


def test_alerts_and_autoscaling_series_do_as_their_unit_tests_say() -> None:
    files = sorted((PROMETHEUS / "tests").glob("*.yml"))
    assert len(files) == 2
    run(tool("promtool"), "test", "rules", *files)


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    alerts = {rule["alert"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
    cases = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text())["tests"]
    fired = {case["alertname"] for test in cases for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == alerts


def test_dashboard_expressions_are_promql(tmp_path: Path) -> None:
    """promtool parses rules alone, so each panel's query becomes one."""
    queries = [text for where, text in expressions().items() if ", " in where]
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m")}
        for number, text in enumerate(queries)
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run(tool("promtool"), "check", "rules", file)
    assert len(queries) > 15
