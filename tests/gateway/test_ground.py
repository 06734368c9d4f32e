"""POST /v1/ground, answered: requests in every form, boxes in the image's pixels."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from gateway.settings import Settings
from referent.core.api import GroundBatchResponse, GroundResponse
from tests.support.fake_triton import FakeTriton
from tests.support.gateway import Start
from tests.support.requests import in_json, jpeg

pytestmark = pytest.mark.anyio


async def test_multipart_and_json_give_the_documented_answer(client: httpx.AsyncClient) -> None:
    image = jpeg(100, 200)
    form = await client.post(
        "/v1/ground", files={"image": image}, data={"expression": ["the queen", "the king"], "model": "tiny"}
    )
    json = await client.post("/v1/ground", json=in_json(image, "the queen", "the king", model="tiny"))

    assert form.status_code == json.status_code == 200
    answer = form.json()
    assert answer["results"] == json.json()["results"]
    assert set(answer) == {"model", "version", "digest", "image", "results", "timings_ms"}
    assert (answer["model"], answer["version"], answer["image"]) == ("tiny", "1", {"width": 100, "height": 200})
    assert answer["digest"].startswith("sha256:")
    first, second = answer["results"]
    best = {
        "expression": "the queen",
        "box_xyxy": [25, 50, 75, 150],
        "box_cxcywh_normalized": [0.5, 0.5, 0.5, 0.5],
        "point_xy": None,
        "score": pytest.approx(0.9),
        "present": True,
    }
    assert first == {**best, "referents": [best]}
    assert (second["expression"], second["present"]) == ("the king", True)
    stages = ["queue", "decode", "preprocess", "inference", "postprocess"]
    assert list(answer["timings_ms"]) == [*stages, "total"]
    assert sum(answer["timings_ms"][stage] for stage in stages) <= answer["timings_ms"]["total"] + 0.01  # rounded
    assert "inference;dur=" in form.headers["server-timing"]
    GroundResponse.model_validate(answer)


@pytest.mark.parametrize(
    ("size", "box_xyxy"),
    [((100, 200), [25, 50, 75, 150]), ((200, 100), [75, 0, 125, 100]), ((100, 100), [37.5, 25, 62.5, 75])],
    ids=["tall", "wide", "square"],
)
async def test_letterbox_is_undone(client: httpx.AsyncClient, size: tuple[int, int], box_xyxy: list[float]) -> None:
    answer = (await client.post("/v1/ground", json=in_json(jpeg(*size), "the queen"))).json()
    assert answer["results"][0]["box_xyxy"] == pytest.approx(box_xyxy)


async def test_exif_rotated_image_is_grounded_as_shown(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/ground", json=in_json(jpeg(200, 100, orientation=6), "the queen"))).json()
    assert answer["image"] == {"width": 100, "height": 200}
    assert answer["results"][0]["box_xyxy"] == pytest.approx([25, 50, 75, 150])


async def test_data_url_and_wrapped_base64_are_accepted(client: httpx.AsyncClient) -> None:
    image = jpeg()
    url = await client.post("/v1/ground", json=in_json(image, "the queen", prefix="data:image/jpeg;base64,"))
    wrapped = {"image": {"base64": base64.encodebytes(image).decode()}, "expressions": ["the queen"]}
    assert url.status_code == (await client.post("/v1/ground", json=wrapped)).status_code == 200


async def test_expressions_beyond_a_row_keep_their_order(client: httpx.AsyncClient, triton: FakeTriton) -> None:
    triton.requests.clear()
    expressions = [f"thing {i}" for i in range(6)]
    answer = (await client.post("/v1/ground", json=in_json(jpeg(), *expressions))).json()
    assert [result["expression"] for result in answer["results"]] == expressions
    assert len(triton.requests) == 2


async def test_special_tokens_that_are_typed_stay_text(client: httpx.AsyncClient, triton: FakeTriton) -> None:
    response = await client.post("/v1/ground", json=in_json(jpeg(), "<image> [LOC]<pad>"))
    assert response.status_code == 200
    ids = triton.requests[-1]["input_ids"][0].tolist()
    assert (ids.count(2), ids.count(3)) == (4, 1)  # the image's own tokens and the prompt's [LOC]


async def test_request_id_is_kept_echoed_and_sent_to_triton(client: httpx.AsyncClient, triton: FakeTriton) -> None:
    response = await client.post(
        "/v1/ground", json=in_json(jpeg(), "the queen"), headers={"X-Request-ID": "caller-7.a_B"}
    )
    assert response.headers["X-Request-ID"] == triton.requests[-1]["id"] == "caller-7.a_B"


@pytest.mark.parametrize("given", ["has space", "x" * 129, "<script>"])
async def test_unfit_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    assert (await client.get("/livez", headers={"X-Request-ID": given})).headers["X-Request-ID"] not in ("", given)


async def test_several_images_get_a_result_or_a_problem_each(client: httpx.AsyncClient) -> None:
    good, tall = in_json(jpeg(), "the queen"), in_json(jpeg(100, 200), "the king", "the ace")
    bad = [in_json(b"words", "a"), in_json(jpeg()), {"image": {"base64": "?"}, "expressions": ["a"]}]
    response = await client.post("/v1/ground", json={"model": "tiny", "images": [good, *bad, tall]})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["status"] for result in results] == [200, 415, 422, 400, 200]
    assert [set(result) for result in results] == [{"status", key} for key in ("answer", *["problem"] * 3, "answer")]
    alone = (await client.post("/v1/ground", json=tall)).json()
    assert results[-1]["answer"]["results"] == alone["results"]
    problem = results[1]["problem"]
    assert (problem["type"], problem["stage"]) == ("urn:referent:problem:unsupported-image", "decode")
    GroundBatchResponse.model_validate(response.json())


async def test_failing_inference_of_one_image_leaves_the_others(client: httpx.AsyncClient, triton: FakeTriton) -> None:
    triton.failures = [(grpc.StatusCode.INTERNAL, "onnx runtime error")]
    response = await client.post("/v1/ground", json={"images": [in_json(jpeg(), "the queen")] * 2})
    assert sorted(result["status"] for result in response.json()["results"]) == [200, 502]
    assert "onnx" not in response.text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("image/png", "image/png"),
        ("image/png, application/json", "image/png"),
        ("IMAGE/PNG;q=0.9", "image/png"),
        ("application/json, image/png", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
    ],
)
async def test_picture_is_answered_to_who_names_it(client: httpx.AsyncClient, accept: str, content_type: str) -> None:
    body = in_json(jpeg(120, 80, orientation=6), "the queen", "x" * 200)
    response = await client.post("/v1/ground", json=body, headers={"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, content_type)
    assert "inference;dur=" in response.headers["server-timing"]
    if content_type == "image/png":
        drawn = Image.open(io.BytesIO(response.content))
        assert drawn.width >= 80  # long labels of so small a picture go to a legend below it
        row = np.asarray(drawn.convert("RGB"))[60, :80].astype(int)
        coloured = np.flatnonzero(np.ptp(row, axis=1))  # on a grey image: the sides of the boxes
        assert (coloured.min(), coloured.max()) == pytest.approx((25, 55), abs=3)


async def test_who_asks_for_a_picture_gets_problems_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ground", json=in_json(b"words", "a"), headers={"Accept": "image/png"})
    assert (response.status_code, response.headers["content-type"]) == (415, "application/problem+json")


@pytest.fixture
async def picture_url() -> AsyncIterator[str]:
    """URL of a JPEG on this machine; other paths are not found."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = b" /picture.jpg " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\n\r\n" % (b"200 OK" if found else b"404 No") + jpeg())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/picture.jpg"


async def test_image_by_url_is_fetched_where_the_settings_say_so(start: Start, picture_url: str) -> None:
    body = {"image": {"url": picture_url}, "expressions": ["the queen"]}
    port = int(picture_url.split(":")[2].split("/")[0])
    listed = {"image_urls": "allow-list", "image_url_hosts": "127.0.0.1, b", "image_url_ports": str(port)}
    async with start(**listed, image_url_private_hosts="127.0.0.1") as client:
        response = await client.post("/v1/ground", json=body)
        assert (response.status_code, "fetch" in response.json()["timings_ms"]) == (200, True)
        missing = {"image": {"url": picture_url + "x"}, "expressions": ["a"]}
        several = await client.post("/v1/ground", json={"images": [body, missing]})
        assert [result["status"] for result in several.json()["results"]] == [200, 422]
        assert "status 404" in several.json()["results"][1]["problem"]["detail"]
    for settings in (listed, {"image_urls": "global", "image_url_ports": str(port)}):
        async with start(**settings) as client:
            problem = (await client.post("/v1/ground", json=body)).json()
            assert (problem["type"], problem["stage"]) == ("urn:referent:problem:image-url", "fetch")
            assert "not public" in problem["detail"]


def test_allow_list_without_hosts_is_an_error() -> None:
    with pytest.raises(ValidationError, match="REFERENT_IMAGE_URL_HOSTS"):
        Settings(image_urls="allow-list")


async def test_predict_answers_as_visual_grounding_api(client: httpx.AsyncClient) -> None:
    body = {"image": base64.b64encode(jpeg(100, 200)).decode(), "text": "the queen"}
    answer = (await client.post("/predict", json=body)).json()
    assert set(answer) == {"bbox", "model", "inference_time_ms"}
    assert answer["bbox"] == pytest.approx([0.5, 0.5, 0.5, 0.5])
    assert answer["model"] == "main"
    named = await client.post("/predict", json=body | {"model": "tiny"})
    assert named.json()["model"] == "tiny"
    assert (await client.post("/predict", json=body | {"model": "ablation"})).status_code == 404


@pytest.mark.parametrize("form", [True, False], ids=["form", "json"])
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"max_instances": 1}, 200),
        ({"max_instances": 64, "heatmap": True}, 200),
        ({"max_instances": 0}, 422),
        ({"max_instances": 65}, 422),
        ({"max_instances": "many"}, 422),
        ({"heatmap": "where"}, 422),
    ],
    ids=str,
)
async def test_options_that_a_model_has_no_use_for_are_checked_and_ignored(
    client: httpx.AsyncClient, options: dict[str, Any], status: int, form: bool
) -> None:
    body = (
        {"files": {"image": jpeg()}, "data": {"expression": "a"} | options}
        if form
        else {"json": in_json(jpeg(), "a", **options)}
    )
    response = await client.post("/v1/ground", **body)
    assert response.status_code == status, response.text
    if status == 422:
        assert next(iter(options)) in response.json()["detail"]
