"""Answers in text, as the gateway gives them on."""

from pathlib import Path

import httpx
import pytest

from referent.core.grammar import BoxGrammar, Generation
from tests.support.fake_triton import FakeTriton, publish
from tests.support.gateway import Start
from tests.support.requests import jpeg

pytestmark = pytest.mark.anyio


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    generation = Generation(grammar=BoxGrammar(order="cxcywh"), eos_token_id=1)
    publish(tmp_path, kind="generator", generation=generation, has_scores=False)
    return tmp_path


async def ground(client: httpx.AsyncClient, *expressions: str) -> httpx.Response:
    return await client.post("/v1/ground", files={"image": jpeg()}, data={"expression": list(expressions)})


async def test_text_and_the_reason_of_the_end_are_in_the_answer(client: httpx.AsyncClient) -> None:
    (result,) = (await ground(client, "the cup")).raise_for_status().json()["results"]
    assert (result["text"], result["finish_reason"]) == ("[text]", "stop")
    assert result["box_xyxy"] == result["referents"][0]["box_xyxy"]
    assert result["score"] == pytest.approx(0.8)


async def test_one_failed_pass_leaves_the_other_expressions_their_answers(client: httpx.AsyncClient) -> None:
    response = await ground(client, "the cup", "the broken cup", "the plate")
    results = response.raise_for_status().json()["results"]
    assert [result["finish_reason"] for result in results] == ["stop", "error", "stop"]
    assert [result["present"] for result in results] == [True, None, True]
    assert results[1]["referents"] == []
    assert "text" not in results[1]


async def test_if_all_failed_another_try_may_help(client: httpx.AsyncClient) -> None:
    response = await ground(client, "broken", "also broken")
    assert response.status_code == 503
    assert response.json()["retryable"] is True
    assert (await ground(client, "the cup")).status_code == 200


async def test_the_generator_is_told_how_long_it_may_take(start: Start, triton: FakeTriton) -> None:
    async with start(deadline_s=7) as client:
        await ground(client, "the cup")
    assert 6000 < triton.requests[-1]["timeout_ms"][0, 0] <= 7000


async def test_instances_asked_for_reach_the_generator(client: httpx.AsyncClient, triton: FakeTriton) -> None:
    body = {"expression": ["the cup"], "max_instances": "9"}
    (await client.post("/v1/ground", files={"image": jpeg()}, data=body)).raise_for_status()
    assert triton.requests[-1]["max_instances"][0, 0] == 9
    assert bytes(triton.requests[-1]["labels"][0, 0]) == b"the cup"


async def test_where_inference_spent_its_time_is_told(client: httpx.AsyncClient) -> None:
    response = await ground(client, "the cup")
    told = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    timings = response.json()["timings_ms"]
    assert (timings["prefill"], timings["generation"]) == (0.25, 0.5)
    assert {stage: float(ms) for stage, ms in told.items()} == timings
    assert list(timings).index("inference") < list(timings).index("prefill") < list(timings).index("total")
