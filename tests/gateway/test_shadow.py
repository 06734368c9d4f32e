"""A shadow model beside the one that serves, on the fake Triton."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import REGISTRY

from gateway.settings import Settings
from gateway.shadow import agreement
from referent.core.answers import Answer, Referent
from tests.support.fake_triton import FakeTriton, publish
from tests.support.gateway import Start
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio
SQUARE = (0.0, 0.0, 2.0, 2.0)


def outcomes(outcome: str) -> float:
    return REGISTRY.get_sample_value("referent_shadow_requests_total", {"outcome": outcome}) or 0


async def until_more(outcome: str, before: float) -> None:
    async with asyncio.timeout(30):
        while outcomes(outcome) == before:
            await asyncio.sleep(0.01)


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/ground", json=in_json(jpeg(), "the queen", "the king"))


@pytest.fixture
def shadowed(repository: Path, triton: FakeTriton) -> dict[str, object]:
    """Settings with a second model, which answers just as the first."""
    publish(repository, name="next")
    triton.serve(repository, "next")
    return {"default_model": "tiny", "shadow_model": "next", "shadow_share": 1.0}


async def test_share_is_asked_of_the_shadow_too_and_agreement_is_observed(
    start: Start, triton: FakeTriton, shadowed: dict[str, object]
) -> None:
    before = outcomes("compared")
    compared = REGISTRY.get_sample_value("referent_shadow_iou_count") or 0
    agreed = REGISTRY.get_sample_value("referent_shadow_iou_sum") or 0
    async with start(**shadowed) as client:
        assert (await ask(client)).json()["model"] == "tiny"
        await until_more("compared", before)
    assert REGISTRY.get_sample_value("referent_shadow_iou_count") == compared + 2
    assert REGISTRY.get_sample_value("referent_shadow_iou_sum") == pytest.approx(agreed + 2)


async def test_shadow_that_fails_changes_no_answer_and_no_readiness(
    start: Start, triton: FakeTriton, shadowed: dict[str, object]
) -> None:
    del triton.served["next"]
    before = outcomes("failed")
    async with start(**shadowed) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await ask(client)).status_code == 200
        await until_more("failed", before)
        assert (await client.get("/readyz")).status_code == 200


async def test_answers_do_not_wait_for_the_shadow(
    start: Start, triton: FakeTriton, shadowed: dict[str, object]
) -> None:
    skipped, compared = outcomes("skipped"), outcomes("compared")
    async with start(**shadowed) as client:
        triton.holds_model = "next"
        assert [(await ask(client)).status_code for _ in range(3)] == [200] * 3
        assert outcomes("skipped") == skipped + 2
        triton.release()
        await until_more("compared", compared)  # a call that ends after its event loop would fail the next test


async def test_shadow_model_asked_by_name_is_not_compared_with_itself(
    start: Start, triton: FakeTriton, shadowed: dict[str, object]
) -> None:
    async with start(**shadowed) as client:
        asked = len(triton.requests)
        response = await client.post("/v1/ground", json=in_json(jpeg(), "the queen", model="next"))
        assert (response.status_code, len(triton.requests)) == (200, asked + 1)


def test_shadow_of_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="are both"):
        Settings(default_model="tiny", shadow_model="tiny")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(SQUARE, SQUARE, 1), (SQUARE, (0.0, 0.0, 2.0, 1.0), 0.5), (SQUARE, None, 0), (None, None, 1)],
    ids=["same", "half", "one sees none", "both see none"],
)
def test_agreement(ours: tuple[float, ...] | None, theirs: tuple[float, ...] | None, expected: float) -> None:
    def found(box: tuple[float, ...] | None) -> Answer:
        referents = [Referent.of_box("", np.array(box), (10, 10), 0.5, True)] if box else []
        return Answer.of("", referents, present=bool(box), score=0.5)

    assert agreement(found(ours), found(theirs)) == pytest.approx(expected)
