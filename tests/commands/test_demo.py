"""What stands behind the demo's page, with the service's answers given; tests/system/ has the page itself."""

from pathlib import Path

import httpx
import pytest
from PIL import Image

from referent.client.http import Client
from referent.commands.demo import HEADERS, ground, sample_scenes
from referent.core.api import EXAMPLE
from tests.support.answers import box_answer

BOX = (0, 0, 10, 20)


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.fixture
def client() -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        body = request.read()
        model = "maxi" if b"\r\n\r\nmaxi\r\n" in body else "mini"
        asked = (text for text in ("the queen", "the king") if text.encode() in body)
        results = [box_answer(text, BOX, 0.9, True).model_dump() for text in asked]
        return httpx.Response(200, json=EXAMPLE | {"model": model, "results": results})

    return Client(transport=httpx.MockTransport(answer))


def test_models_stand_side_by_side_with_iou_where_a_box_is_known(client: Client, image: str) -> None:
    truth = ["", "0, 0, 10, 10"]
    pictures, rows = ground(client, image, ["the queen ", "the king", ""], ["mini", "maxi"], truth)
    assert [caption.split()[0] for _, caption in pictures] == ["mini", "maxi"]
    assert pictures[0][0].size == (50, 50)
    told = [dict(zip(HEADERS, row, strict=True)) for row in rows]
    assert [(row["model"], row["expression"], row["IoU"]) for row in told] == [
        ("mini", "the queen", ""),
        ("mini", "the king", "0.50"),
        ("maxi", "the queen", ""),
        ("maxi", "the king", "0.50"),
    ]


@pytest.mark.parametrize(
    ("expressions", "models", "truth", "message"),
    [
        ([" "], ["mini"], [], "something to look for"),
        (["a"], [], [], "and a model"),
        (["a"], ["mini"], ["1, 2, 3"], "no box"),
        (["a"], ["mini"], ["1, 2, three, 4"], "no box"),
        (["a"], ["mini"], ["5, 2, 3, 4"], "x1 must be less than x2"),
    ],
)
def test_what_is_missing_or_wrong_is_told(
    client: Client, image: str, expressions: list[str], models: list[str], truth: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ground(client, image, expressions, models, truth)


def test_examples_are_the_sample_scenes_with_a_box_for_each_expression() -> None:
    scenes = sample_scenes()
    assert scenes
    for image, expressions, boxes in scenes:
        assert Path(image).exists()
        assert len(expressions.splitlines()) == len(boxes.splitlines())
