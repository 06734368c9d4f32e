"""Several Tritons behind one gateway: if one ends, no request fails; a new one gets its share of requests."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from gateway.registry import Registry
from referent.triton.aio import Triton
from tests.support.fake_triton import FakeTriton, publish
from tests.support.gateway import Start, listening
from tests.support.nameserver import Nameserver
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio
GOOD = in_json(jpeg(), "the queen")


@pytest.fixture
def two(repository: Path) -> tuple[FakeTriton, FakeTriton]:
    fakes = FakeTriton(), FakeTriton()
    for fake in fakes:
        fake.serve(repository)
    return fakes


async def test_load_is_shared_and_one_that_goes_is_not_noticed(
    start: Start, two: tuple[FakeTriton, FakeTriton]
) -> None:
    with listening(two[0]) as first, ExitStack() as stack:
        second = stack.enter_context(listening(two[1]))
        async with start(triton_url=f"{first},{second}") as client:

            async def ask(times: int) -> list[int]:
                requests = [client.post("/v1/ground", json=GOOD) for _ in range(times)]
                return [response.status_code for response in await asyncio.gather(*requests)]

            assert await ask(8) == [200] * 8
            assert all(len(fake.requests) >= 3 for fake in two)
            two[1].holds = True  # so that some are in flight there when it goes
            asking = asyncio.create_task(ask(4))
            assert await asyncio.to_thread(two[1].arrived.wait, 30)
            await asyncio.to_thread(stack.close)
            assert await asking == [200] * 4
            assert await ask(8) == [200] * 8


async def test_tritons_that_move_on_one_by_one_lose_no_request(
    start: Start, two: tuple[FakeTriton, FakeTriton], repository: Path
) -> None:
    with listening(two[0]) as first, listening(two[1]) as second:
        async with start(triton_url=f"{first},{second}") as client:
            publish(repository, "2")
            for moving in two:
                moving.served.clear()
                moving.serve(repository, version="2")
                answers = await asyncio.gather(*[client.post("/v1/ground", json=GOOD) for _ in range(24)])
                assert [answer.status_code for answer in answers] == [200] * 24
                assert (await client.post("/v1/reload")).json()["models"][0]["ready"]
            assert (await client.post("/v1/ground", json=GOOD)).json()["version"] == "2"


async def test_version_that_goes_while_a_request_looks_for_it_costs_no_answer(start: Start, triton: FakeTriton) -> None:
    gone = grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'tiny' version 1 is not at ready state"
    async with start() as client:
        triton.failures = [gone] * 7  # all tries of the first look, and some of the golden inference after it
        assert (await client.post("/v1/ground", json=GOOD)).status_code == 200
        assert not triton.failures


async def test_while_they_move_on_one_by_one_requests_find_their_version(
    start: Start, two: tuple[FakeTriton, FakeTriton], repository: Path
) -> None:
    with listening(two[0]) as first, listening(two[1]) as second:
        async with start(triton_url=f"{first},{second}", readiness_interval_s=0.05) as client:
            publish(repository, "2")
            two[1].serve(repository, version="2")
            del two[1].served["tiny"]["1"]
            answers = [await client.post("/v1/ground", json=GOOD) for _ in range(40)]
            assert [answer.status_code for answer in answers] == [200] * 40
            assert (await client.get("/readyz")).status_code == 200
            two[0].served["tiny"] = dict(two[1].served["tiny"])
            async with asyncio.timeout(30):
                while (await client.post("/v1/ground", json=GOOD)).json()["version"] != "2":
                    pass


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    server = Nameserver()
    server.start()
    yield server
    server.socket.sendto(b"", server.socket.getsockname())
    server.join()
    server.socket.close()


async def test_one_that_is_added_to_the_name_gets_its_share(
    repository: Path, two: tuple[FakeTriton, FakeTriton], nameserver: Nameserver
) -> None:
    with listening(two[0]) as first:
        port = first.rpartition(":")[2]
        client = Triton(f"dns://{nameserver.address}/triton.test:{port}")
        registry = Registry(repository, client, "tiny")
        await registry.refresh()
        assert registry.ready
        reconnecting = asyncio.create_task(client.keep_reconnecting(0.2))
        with listening(two[1], f"127.0.0.2:{port}"):
            nameserver.addresses.append("127.0.0.2")
            async with asyncio.timeout(60):
                while not two[1].requests:
                    await registry.refresh()  # a golden inference
        reconnecting.cancel()
        await client.close()


async def test_a_question_outlives_new_connections(repository: Path, triton: FakeTriton, triton_url: str) -> None:
    client = Triton(triton_url)
    registry = Registry(repository, client, "tiny")
    triton.holds = True
    reconnecting = asyncio.create_task(client.keep_reconnecting(0.02))
    asking = asyncio.create_task(registry.refresh())
    await asyncio.wait([asking], timeout=0.5)  # many intervals
    triton.release()
    await asking
    assert registry.ready
    assert len(triton.requests) == 1  # it was not asked again
    reconnecting.cancel()
    await client.close()


FAULTS = [
    (grpc.StatusCode.INTERNAL, "CUDA error 700: an illegal memory access was encountered"),
    (grpc.StatusCode.INTERNAL, "Stub process 'tiny_box_head_0_0' is not healthy."),
    (grpc.StatusCode.INTERNAL, "inference failed; the server's log has the cause"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=["broken GPU", "dead process", "other"])
async def test_internal_error_of_one_is_repeated_once_on_another(
    start: Start, two: tuple[FakeTriton, FakeTriton], fault: tuple[grpc.StatusCode, str]
) -> None:
    with listening(two[0]) as first, listening(two[1]) as second:
        async with start(triton_url=f"{first},{second}") as client:
            two[0].failures = [fault] * 100
            answers = [await client.post("/v1/ground", json=GOOD) for _ in range(6)]
            assert [answer.status_code for answer in answers] == [200] * 6
            two[1].failures = [fault] * 100
            asked = len(two[0].requests) + len(two[1].requests)
            assert (await client.post("/v1/ground", json=GOOD)).status_code in (502, 503)
            assert len(two[0].requests) + len(two[1].requests) == asked + 2


@pytest.mark.parametrize("fault", FAULTS, ids=["broken GPU", "dead process", "other"])
async def test_internal_error_of_the_only_one_is_not_repeated(
    start: Start, triton: FakeTriton, fault: tuple[grpc.StatusCode, str]
) -> None:
    async with start() as client:
        triton.failures = [fault]
        assert (await client.post("/v1/ground", json=GOOD)).status_code in (502, 503)
        assert not triton.failures
