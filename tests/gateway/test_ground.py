"""POST /v1/ground, answered: requests in every form, boxes in the image's pixels."""

import base64

import httpx
import pytest

from referent.api import GroundResponse
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.samples import in_json, jpeg

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
    assert first == {
        "expression": "the queen",
        "box_xyxy": [25, 50, 75, 150],
        "box_cxcywh_normalized": [0.5, 0.5, 0.5, 0.5],
        "score": pytest.approx(0.9),
        "present": True,
    }
    assert (second["expression"], second["present"]) == ("the king", True)
    stages = ["decode", "preprocess", "inference", "postprocess"]
    assert list(answer["timings_ms"]) == [*stages, "total"]
    assert sum(answer["timings_ms"][stage] for stage in stages) <= answer["timings_ms"]["total"]
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


async def test_predict_answers_as_visual_grounding_api(client: httpx.AsyncClient) -> None:
    body = {"image": base64.b64encode(jpeg(100, 200)).decode(), "text": "the queen"}
    answer = (await client.post("/predict", json=body)).json()
    assert set(answer) == {"bbox", "model", "inference_time_ms"}
    assert answer["bbox"] == pytest.approx([0.5, 0.5, 0.5, 0.5])
    assert answer["model"] == "main"
    named = await client.post("/predict", json=body | {"model": "tiny"})
    assert named.json()["model"] == "tiny"
    assert (await client.post("/predict", json=body | {"model": "ablation"})).status_code == 404
