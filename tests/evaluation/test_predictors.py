"""Both sources with the model or the transport given; tests/system/ has the real ones against each other."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest
from PIL import Image

from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.client.http import Client
from referent.core.answers import Answer
from referent.core.api import EXAMPLE
from referent.core.images import Picture, decode_image
from referent.core.prompts import ExpressionError
from referent.data.records import Record
from referent.evaluation.predictions import Prediction
from referent.evaluation.predictors import EXPRESSIONS_PER_REQUEST, ask_checkpoint, ask_service
from tests.support.answers import box_answer
from tests.support.scored import BOX, record

Handler = Callable[[httpx.Request], httpx.Response]
PROBLEM = {"content-type": "application/problem+json"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (100, 100)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def records() -> list[Record]:
    """Three of one image, one of another, and three that can't be asked."""
    about = [("1", "a.jpg"), ("2", "b.jpg"), ("3", "a.jpg"), ("4", "broken.jpg"), ("5", "none.jpg")]
    return [record(id, image=image, expression=id) for id, image in about] + [
        record("6", image="a.jpg", expression=" "),
        record("7", image="a.jpg", expression="7"),
    ]


class Model:
    """Finds the expression "3" at a place of its own, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def decode(self, data: bytes) -> Picture:
        image = decode_image(data)
        return Picture(image, image.size)

    def ground(self, image: Picture, expressions: Sequence[str]) -> list[Answer]:
        if " " in expressions:
            raise ExpressionError("the expression is empty")
        self.asked.append(list(expressions))
        return [box_answer(e, BOX if e == "3" else (0, 0, 1, 1), 0.5) for e in expressions]

    def ground_batch(self, images: Sequence[Picture], expressions: Sequence[Sequence[str]]) -> list[list[Answer]]:
        return [self.ground(*pair) for pair in zip(images, expressions, strict=True)]


def by_id(predictions: Sequence[Prediction]) -> dict[str, Prediction]:
    return {prediction.id: prediction for prediction in predictions}


def test_expressions_of_an_image_are_asked_together(images: Path, records: list[Record]) -> None:
    model = Model()
    list(ask_checkpoint(model, [record for record in records if record.expression != " "], images))
    assert model.asked == [["1", "3", "7"], ["2"]]


@pytest.mark.parametrize("images_per_batch", [1, 8])
def test_checkpoint_answers_what_it_can(images: Path, records: list[Record], images_per_batch: int) -> None:
    found = by_id(list(ask_checkpoint(Model(), records, images, images_per_batch)))
    assert set(found) == {record.id for record in records}
    assert (found["3"].box_xyxy, found["3"].score) == (BOX, 0.5)
    assert found["1"].ms is not None
    assert {id for id, prediction in found.items() if prediction.box_xyxy is None} == {"4", "5", "6"}
    for id, reason in (("4", "not a JPEG"), ("5", "no file"), ("6", "the expression is empty")):
        assert reason in str(found[id].error)


def answer(request: httpx.Request) -> httpx.Response:
    """As `Model` does."""
    body = request.read()
    if b"no image" in body:
        return httpx.Response(415, headers=PROBLEM, json={"title": "Unsupported image", "detail": "not a JPEG"})
    expressions = [text.decode() for text in re.findall(rb'name="expression"\r\n\r\n(.*?)\r\n', body)]
    if " " in expressions:
        return httpx.Response(422, headers=PROBLEM, json={"title": "Bad", "detail": "the expression is empty"})
    answers = [box_answer(e, BOX if e == "3" else (0, 0, 1, 1), 0.5) for e in expressions]
    return httpx.Response(200, json=EXAMPLE | {"results": [each.model_dump() for each in answers]})


def ask(handler: Handler, records: list[Record], images: Path, **options: int) -> dict[str, Prediction]:
    with Client(transport=httpx.MockTransport(handler)) as client:
        return by_id(list(ask_service(client, records, images, **options)))


def test_service_and_checkpoint_agree(images: Path, records: list[Record]) -> None:
    served, local = ask(answer, records, images), by_id(list(ask_checkpoint(Model(), records, images)))
    assert served.keys() == local.keys()
    for id, prediction in served.items():
        assert (prediction.box_xyxy, prediction.score) == (local[id].box_xyxy, local[id].score)
        assert (prediction.error is None) == (local[id].error is None)


def test_a_request_holds_a_bounded_number_of_expressions(images: Path) -> None:
    asked = []

    def count(request: httpx.Request) -> httpx.Response:
        asked.append(request.read().count(b'name="expression"'))
        return answer(request)

    many = [record(str(i), image="a.jpg", expression=str(i)) for i in range(2 * EXPRESSIONS_PER_REQUEST + 1)]
    assert len(ask(count, many, images)) == len(many)
    assert sorted(asked) == [1, EXPRESSIONS_PER_REQUEST, EXPRESSIONS_PER_REQUEST]


def test_the_limit_of_referents_is_asked_for(images: Path, records: list[Record]) -> None:
    limits = []

    def limited(request: httpx.Request) -> httpx.Response:
        limits.extend(re.findall(rb'name="max_instances"\r\n\r\n(\d+)\r\n', request.read()))
        return answer(request)

    ask(limited, records[:2], images, max_instances=30)
    ask(limited, records[:2], images)
    assert limits == [b"30"] * 2


def test_retryable_problems_are_asked_again(
    monkeypatch: pytest.MonkeyPatch, images: Path, records: list[Record]
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    refused: list[bytes] = []

    def busy_at_first(request: httpx.Request) -> httpx.Response:
        if len(refused) < 2:
            refused.append(request.read())
            return httpx.Response(503, headers=PROBLEM, json={"title": "Busy", "retryable": True})
        return answer(request)

    assert ask(busy_at_first, records, images, concurrency=1)["3"].box_xyxy == BOX
    assert len(refused) == len(slept) == 2


@pytest.mark.parametrize("status", [401, 404, 500], ids=["no key", "unknown model", "broken"])
def test_problems_of_the_service_end_the_run(images: Path, records: list[Record], status: int) -> None:
    with pytest.raises(ServiceError, match=str(status)):
        ask(lambda request: httpx.Response(status, headers=PROBLEM, json={"title": "No"}), records, images)


def test_no_service_ends_the_run(images: Path, records: list[Record]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ServiceUnreachableError):
        ask(refuse, records, images)
