"""Health, models, OpenAPI, metrics, logs, settings, imports: the gateway as its operators meet it."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest
from pydantic import ValidationError
from structlog.testing import capture_logs

from gateway.errors import TABLE
from gateway.server import listen, url_of
from gateway.settings import OTHERS, Settings
from referent.core.interpreter import TURN
from tests.support.gateway import Start
from tests.support.requests import in_json, jpeg


@pytest.mark.anyio
async def test_what_holds_the_interpreter_takes_turns_and_the_event_loop_goes_on(client: httpx.AsyncClient) -> None:
    with TURN:  # another body is being parsed
        waiting = asyncio.create_task(client.post("/v1/ground", json=in_json(jpeg(), "the queen")))
        for _ in range(20):
            assert (await client.get("/livez")).status_code == 200
        assert not waiting.done()
    assert (await waiting).status_code == 200


@pytest.mark.anyio
async def test_health_and_models(client: httpx.AsyncClient) -> None:
    answers = {path: (await client.get(path)).json() for path in ("/livez", "/readyz", "/health", "/models")}
    assert answers == {
        "/livez": {"status": "ok"},
        "/readyz": {"status": "ready"},
        "/health": {"status": "ok", "models_loaded": ["tiny"], "device": "triton"},
        "/models": {
            "models": [
                {"name": "tiny", "description": "version 1", "test_iou": 0.75, "test_rmse": None, "test_mae": None}
            ]
        },
    }
    [served] = (await client.get("/v1/models")).json()["models"]
    assert served.pop("digest").startswith("sha256:")
    assert served == {
        "name": "tiny",
        "version": "1",
        "kind": "head",
        "gives": "boxes",
        "several": False,
        "heatmaps": False,
        "knows": None,
        "default": True,
        "ready": True,
        "present_threshold": 0.5,
        "evaluation": {"test": {"mean_iou": 0.75}},
    }


HEALTH = ("/livez", "/healthz", "/readyz", "/health", "/v2/health/live", "/v2/health/ready")


@pytest.mark.anyio
@pytest.mark.parametrize("path", [*HEALTH, "/models", "/v1/models", "/v1/metadata", "/docs", "/"])
async def test_head_is_answered_as_get_is(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert head.status_code == got.status_code == 200
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/ground/", "/livez/", "/v1/models/", "//livez", "/docs/"])
async def test_no_redirect_names_a_scheme_or_a_path_that_proxies_changed(client: httpx.AsyncClient, path: str) -> None:
    headers = {"Host": "api.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/grounding"}
    for method in ("GET", "POST"):
        response = await client.request(method, f"http://gateway{path}", headers=headers)
        assert (response.status_code, "location" in response.headers) == (404, False)


@pytest.mark.anyio
async def test_pages_of_other_origins_may_send_what_tracing_adds(start: Start) -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    async with start(cors_origins="https://page.example") as client:
        for names, status in (("traceparent, tracestate, x-api-key", 200), ("content-type", 200), ("x-other", 400)):
            headers = asked | {"Access-Control-Request-Headers": names}
            assert (await client.options("/v1/ground", headers=headers)).status_code == status


@pytest.mark.anyio
async def test_openapi_documents_both_bodies_and_resolves(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/v1/ground"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    schemas = document["components"]["schemas"]
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    assert schemas["GroundResponse"]["examples"]
    image = {"base64": schemas["ImageInput"]["properties"]["base64"]["examples"][0]}
    example = {"image": image, "expressions": schemas["GroundRequest"]["properties"]["expressions"]["examples"][0]}
    assert (await client.post("/v1/ground", json=example)).status_code == 200


@pytest.mark.anyio
async def test_a_request_leaves_metrics_and_one_line_without_its_content(client: httpx.AsyncClient) -> None:
    with capture_logs() as lines:
        await client.post("/v1/ground", json=in_json(jpeg(), "the secret"))
        await client.get("/v1/nowhere")
        await client.post("/v1/ground", headers={"X-Request-Timeout": "soon"})  # refused before it has a route
    outcomes = [("/v1/ground", 200), ("unmatched", 404), ("/v1/ground", 422)]
    assert [(line["route"], line["status"]) for line in lines] == outcomes
    assert "secret" not in str(lines)
    metrics = generate_latest().decode()
    for sample in (
        'referent_requests_total{code="200",route="/v1/ground"}',
        'referent_request_duration_seconds_count{route="/v1/ground"}',
        'referent_stage_duration_seconds_count{stage="inference"}',
        'referent_rejections_total{reason="not-found"}',
        "referent_inflight_requests 0.0",
        "referent_inflight_requests_limit 64.0",
        "referent_inflight_bytes 0.0",
        "referent_inflight_bytes_limit 5.36870912e+08",
        'referent_stage_duration_seconds_count{stage="queue"}',
        'referent_expressions_per_request_bucket{le="1.0"}',
        'referent_model_info{digest="sha256:',
    ):
        assert sample in metrics


def test_settings_come_from_the_environment_and_unknown_ones_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFERENT_DEADLINE_S", "2.5")
    monkeypatch.setenv("REFERENT_TRITON_DIR", "/elsewhere")
    assert Settings().deadline_s == 2.5
    monkeypatch.setenv("REFERENT_DEADLINE", "3")
    with pytest.raises(ValidationError, match="REFERENT_DEADLINE; known are"):
        Settings()


def test_log_lines_are_json_with_the_request_id() -> None:
    program = """
import logging
from asgi_correlation_id import correlation_id
from gateway.telemetry import configure_logging
configure_logging()
correlation_id.set("r-1")
logging.getLogger("library").warning("odd %s", "thing")
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    line = json.loads(output)
    assert (line["event"], line["logger"], line["request_id"]) == ("odd thing", "library", "r-1")


def test_ports_that_are_taken_are_named() -> None:
    with listen(Settings(port=0, metrics_port=0)) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(OSError, match=str(port)):
            listen(Settings(port=port, metrics_port=0))
        with pytest.raises(OSError, match="REFERENT_METRICS_PORT"):
            listen(Settings(port=0, metrics_port=port))


PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()


def test_page_has_every_problem_as_the_table_has_it() -> None:
    rows = {
        f"| `{kind.slug}` | {kind.status} | {'yes' if kind.retryable else 'no'} | {kind.title} |"
        for kind in TABLE.values()
        if kind.status != 499
    }
    assert {line for line in PAGE.splitlines() if line in rows} == rows


def test_page_has_every_setting_with_its_default_and_no_other() -> None:
    for name, field in Settings.model_fields.items():
        value = field.default
        default = ", ".join(map(str, sorted(value))) if isinstance(value, frozenset) else "" if value is None else value
        assert f"| `REFERENT_{name.upper()}` | {default} | {field.description} |" in PAGE
    named = set(re.findall(r"REFERENT_[A-Z_]+", PAGE)) - OTHERS
    assert named == {f"REFERENT_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.anyio
async def test_page_has_every_path_and_metric(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    names = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    names |= {
        line.split()[2] for line in generate_latest().decode().splitlines() if line.startswith("# TYPE referent_")
    }
    assert {name for name in names if f"`{name}`" not in PAGE and not name.endswith("_created")} == set()
