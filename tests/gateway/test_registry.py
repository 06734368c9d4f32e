"""Which version is served: checked against Triton, replaced when another is published, refused when it fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import grpc
import pytest

from gateway import app
from gateway.registry import NotReadyError, Registry, UnknownModelError
from referent.triton.aio import Triton
from referent.triton.golden import probe
from referent.triton.protocol import TritonError
from tests.support.fake_triton import FakeTriton, publish
from tests.support.gateway import Start
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio
GOOD = in_json(jpeg(), "the queen")


@pytest.fixture
async def registry(repository: Path, triton_url: str) -> AsyncIterator[Registry]:
    client = Triton(triton_url)
    yield Registry(repository, client, "mini")
    await client.close()


async def test_ready_only_after_a_golden_inference(registry: Registry, triton: FakeTriton) -> None:
    assert not registry.ready
    with pytest.raises(NotReadyError):
        registry.get(None)

    await registry.refresh()

    assert registry.ready
    assert registry.get(None) is registry.get("tiny")
    assert len(triton.requests) == 1
    with pytest.raises(UnknownModelError, match="served are: tiny"):
        registry.get("mini")


@pytest.mark.parametrize("box", [(float("nan"), 0, 0, 0), (0.5, 0.5, 0.5, 1.5)], ids=["no number", "out of range"])
async def test_bad_golden_boxes_end_readiness_until_they_are_good(
    registry: Registry, triton: FakeTriton, box: tuple[float, ...]
) -> None:
    await registry.refresh()
    good, triton.box = triton.box, box
    await registry.refresh()
    assert not registry.ready
    triton.box = good
    await registry.refresh()
    assert registry.ready


async def test_another_digest_or_other_tensors_are_refused(
    registry: Registry, triton: FakeTriton, repository: Path
) -> None:
    triton.serve(repository, digest="sha256:other")
    await registry.refresh()
    assert "of digest sha256:other" in registry.faults["tiny"]

    publish(repository, "2", image={"size": 16})
    triton.serve(repository, version="2")
    triton.misreported_size = 32
    await registry.refresh()
    assert "with tensors" in registry.faults["tiny"]


async def test_missing_bundle_of_a_served_version_is_a_fault(
    registry: Registry, triton: FakeTriton, repository: Path
) -> None:
    publish(repository, "2")
    triton.serve(repository, version="2")
    (repository / "tiny" / "2" / "bundle.json").write_text("{}")
    await registry.refresh()
    assert "not a bundle of this release" in registry.faults["tiny"]


async def test_published_version_is_used_once_triton_serves_it(
    registry: Registry, triton: FakeTriton, repository: Path
) -> None:
    await registry.refresh()
    publish(repository, "2", present_threshold=0.95)
    await registry.refresh()
    assert registry.get("tiny").bundle.version == "1"
    triton.serve(repository, version="2")
    await registry.refresh()
    assert registry.get("tiny").bundle.present_threshold == 0.95


async def test_refused_version_leaves_the_one_before(registry: Registry, triton: FakeTriton, repository: Path) -> None:
    await registry.refresh()
    publish(repository, "2")
    triton.serve(repository, version="2", digest="sha256:other")
    await registry.refresh()
    assert registry.ready
    assert registry.get("tiny").bundle.version == "1"


async def test_request_meets_a_version_that_has_gone(start: Start, triton: FakeTriton, repository: Path) -> None:
    async with start() as client:
        publish(repository, "2", present_threshold=0.95)
        triton.serve(repository, version="2")
        del triton.served["tiny"]["1"]
        answer = (await client.post("/v1/ground", json=GOOD)).json()
    assert (answer["version"], answer["results"][0]["present"]) == ("2", False)


async def test_request_finds_no_version_any_more(start: Start, triton: FakeTriton) -> None:
    async with start() as client:
        triton.served.clear()
        response = await client.post("/v1/ground", json=GOOD)
        assert (response.status_code, response.json()["retryable"]) == (503, True)
        assert (await client.get("/readyz")).status_code == 503


async def test_model_without_scores(registry: Registry, start: Start, triton: FakeTriton, repository: Path) -> None:
    publish(repository, name="plain", has_scores=False, present_threshold=None)
    triton.serve(repository, "plain")
    async with start() as client:
        answer = (await client.post("/v1/ground", json=GOOD | {"model": "plain"})).json()
    assert (answer["results"][0]["score"], answer["results"][0]["present"]) == (None, None)


async def test_several_models_and_no_default(start: Start, triton: FakeTriton, repository: Path) -> None:
    publish(repository, name="other")
    triton.serve(repository, "other")
    async with start() as client:
        response = await client.post("/v1/ground", json=GOOD)
        assert response.status_code == 404
        assert "served are: other, tiny" in response.json()["detail"]
    async with start(default_model="other") as client:
        assert (await client.post("/v1/ground", json=GOOD)).json()["model"] == "other"
        defaults = {m["name"]: m["default"] for m in (await client.get("/v1/models")).json()["models"]}
        assert defaults == {"other": True, "tiny": False}


async def test_new_name_that_triton_does_not_serve_yet_leaves_the_others(
    registry: Registry, triton: FakeTriton, repository: Path
) -> None:
    await registry.refresh()
    publish(repository, "1", name="other")
    await registry.refresh()
    assert registry.ready
    with pytest.raises(NotReadyError, match="other is not ready yet"):
        registry.get("other")


async def test_gateway_waits_for_triton(start: Start, triton: FakeTriton) -> None:
    served, triton.served = triton.served, {}
    async with start() as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).json()["type"] == "urn:referent:problem:not-ready"
        assert (await client.post("/v1/ground", json=GOOD)).status_code == 503
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (
            503,
            {"status": "unavailable", "models_loaded": [], "device": "triton"},
        )
        triton.served = served


async def test_failing_inference_has_the_models_examined_at_once(start: Start, triton: FakeTriton) -> None:
    async with start(readiness_interval_s=3600) as client:
        good, triton.box = triton.box, (float("nan"), 0, 0, 0)
        assert (await client.post("/v1/ground", json=GOOD)).status_code == 502
        async with asyncio.timeout(30):
            while (await client.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.01)
            triton.box = good
            while (await client.get("/readyz")).status_code == 503:
                await asyncio.sleep(0.01)


async def test_full_queue_is_no_reason_not_to_be_ready(registry: Registry, triton: FakeTriton) -> None:
    await registry.refresh()
    triton.failures = [(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")] * 2
    await registry.refresh()
    assert registry.ready
    assert not triton.failures


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.INTERNAL, "Stub process 'mini_language_model_0_0' is not healthy."),
        (grpc.StatusCode.INTERNAL, "Failed to increase the shared memory pool size for key '/dev/shm/x'"),
        (grpc.StatusCode.UNAVAILABLE, "Server is stopping, scheduler for model has stopped accepting requests"),
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
    ],
    ids=["dead stub", "full shared memory", "stopping", "killed"],
)
async def test_passing_faults_of_triton_may_be_tried_again(
    start: Start, triton: FakeTriton, code: grpc.StatusCode, message: str
) -> None:
    async with start() as client:
        triton.failures = [(code, message)] * 3
        response = await client.post("/v1/ground", json=GOOD)
    assert (response.status_code, response.json()["retryable"]) == (503, True)


async def test_reload_looks_for_new_versions(start: Start, triton: FakeTriton, repository: Path) -> None:
    async with start() as client:
        publish(repository, "2")
        triton.serve(repository, version="2")
        [served] = (await client.post("/v1/reload")).json()["models"]
        assert served["version"] == "2"


async def test_reload_whose_body_passes_the_limit_is_refused(start: Start, triton: FakeTriton) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.to_thread(triton.arrived.wait, 30)  # while the models are examined
        for _ in range(3):
            yield bytes(2**20)

    async with start(max_image_bytes=2**20) as client:
        triton.holds = True
        triton.arrived.clear()
        answer = await client.post("/v1/reload", content=pieces())
        triton.release()
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:referent:problem:body-too-large")


async def test_a_model_that_is_slow_at_the_start_delays_no_probe(
    start: Start, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "START_S", 0.1)
    triton.holds = True
    async with start() as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        triton.release()
        async with asyncio.timeout(30):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)  # the application is called in this event loop


@pytest.mark.parametrize(("box", "fit"), [((0.5, 0.5, 0.2, 0.2), True), ((float("nan"), 0, 0, 0), False)])
def test_launchers_probe_asks_a_candidate_for_the_golden_boxes(
    repository: Path, triton: FakeTriton, triton_url: str, box: tuple[float, ...], fit: bool
) -> None:
    triton.served["tiny.candidate"] = triton.served["tiny"]
    triton.box = box
    with nullcontext() if fit else pytest.raises(TritonError, match="finite"):
        probe(repository, triton_url, "tiny", 10, served_as="tiny.candidate")
    assert len(triton.requests) == 1


async def test_models_that_are_not_to_be_served_make_nobody_wait(start: Start, repository: Path) -> None:
    publish(repository, name="another")  # which Triton doesn't serve
    async with start(default_model="tiny", models=frozenset({"tiny"})) as client:
        assert (await client.get("/readyz")).status_code == 200
    async with start(default_model="tiny", models=frozenset({"tiny", "another"})) as client:
        assert (await client.get("/readyz")).status_code == 503


async def test_what_is_broken_or_unserved_keeps_nobody_from_the_others(start: Start, repository: Path) -> None:
    publish(repository, name="another")  # which Triton doesn't serve
    (repository / "junk" / "1").mkdir(parents=True)
    (repository / "junk" / "1" / "bundle.json").write_text("{")
    async with start(default_model="mini") as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/v1/ground", json=GOOD)).json()["model"] == "tiny"
        for name in ("another", "junk"):
            refused = await client.post("/v1/ground", json=GOOD | {"model": name})
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:referent:problem:not-ready")


async def test_looks_at_a_model_that_is_not_ready_become_rarer(
    registry: Registry, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            raise asyncio.CancelledError

    monkeypatch.setattr("gateway.registry.asyncio.sleep", note)
    triton.box = (float("nan"), 0, 0, 0)
    await registry.refresh()
    with pytest.raises(asyncio.CancelledError):
        await registry.keep_fresh(5, lambda: None)
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 15]
