"""Hostile and odd inputs, made here: each gets a problem or a sound answer, and the service still answers after it."""

import pytest

from tests.support.gateway import Start
from tests.support.hostile import CORPUS, GOLDEN, MAX_PIXELS, fault_of

pytestmark = pytest.mark.anyio
JSON, FORM = "application/json", "multipart/form-data; boundary=b"


def test_corpus_is_large_and_named() -> None:
    assert len(CORPUS) >= 400
    assert len({entry.name for entry in CORPUS}) == len(CORPUS)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def test_each_gets_its_answer_and_leaves_the_service_whole(start: Start) -> None:
    async with start(max_pixels=MAX_PIXELS, max_image_bytes=4_000_000) as client:
        golden = (await client.post("/v1/ground", json=GOLDEN)).json()["results"]
        faults = []
        for entry in CORPUS:
            headers = {name: value.encode("latin-1") for name, value in entry.all_headers.items()}
            response = await client.post(entry.path, content=entry.body, headers=headers)
            if fault := fault_of(entry, response):
                faults.append(f"{entry.name}: {fault}")
            after = await client.post("/v1/ground", json=GOLDEN)
            if after.status_code != 200 or after.json()["results"] != golden:
                faults.append(f"{entry.name}: the next request got {after.text[:200]}")
        assert not faults, "\n".join(faults)
