"""The functions behind the demo's page, with given answers of the service; tests/system/ has the page itself."""

from pathlib import Path

import httpx
import pytest
from PIL import Image

from referent.client.http import Client
from referent.commands.demo import HEADERS, ground, sample_scenes, with_box
from referent.core.api import EXAMPLE
from tests.support.answers import box_answer, points_answer

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
    shown, rows = ground(client, image, ["the queen ", "the king", ""], ["mini", "maxi"], truth)
    assert list(shown) == [each.caption.split()[0] for each in shown.values()] == ["mini", "maxi"]
    assert shown["mini"].picture.width >= 50
    told = [dict(zip(HEADERS, row, strict=True)) for row in rows]
    assert [(row["model"], row["expression"], row["IoU"]) for row in told] == [
        ("mini", "the queen", ""),
        ("mini", "the king", "0.50"),
        ("maxi", "the queen", ""),
        ("maxi", "the king", "0.50"),
    ]


def test_what_a_model_wrote_is_shown_as_it_is(image: str) -> None:
    wrote = points_answer("the queen", (5, 5)).model_dump()

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=EXAMPLE | {"results": [wrote]})

    shown, rows = ground(Client(transport=httpx.MockTransport(answer)), image, ["the queen"], ["baseline"], [])
    assert shown["baseline"].text == "the queen: <points>"
    assert rows[0][HEADERS.index("IoU")] == ""


def test_a_true_box_is_drawn_in_the_picture(client: Client, image: str) -> None:
    drawn = [
        ground(client, image, ["the king"], ["mini"], truth)[0]["mini"].picture for truth in ([], ["30, 30, 40, 40"])
    ]
    assert drawn[0].getpixel((35, 30)) == (0, 0, 0)
    assert any(drawn[1].getpixel((x, 30)) == (255, 255, 255) for x in range(30, 40))


@pytest.mark.parametrize(
    ("truth", "expressions", "expected"),
    [
        ("", "the king", "10, 20, 30, 40"),
        ("", "", "10, 20, 30, 40"),
        ("1, 2, 3, 4", "the king\nthe queen", "1, 2, 3, 4\n10, 20, 30, 40"),
        ("\n5, 6, 7, 8", "the king\nthe queen\n", "10, 20, 30, 40\n5, 6, 7, 8"),
        ("1, 2, 3, 4", "the king", "10, 20, 30, 40"),
    ],
    ids=["first", "no expression", "second", "gap", "again"],
)
def test_two_corners_are_the_box_of_the_first_line_without_one(truth: str, expressions: str, expected: str) -> None:
    assert with_box(truth, expressions, (30, 20), (10, 40)) == expected


@pytest.mark.parametrize(
    ("expressions", "models", "truth", "message"),
    [
        ([" "], ["mini"], [], "something to look for"),
        (["a"], [], [], "and a model"),
        (["a"], ["mini"], ["1, 2, 3"], "not a box"),
        (["a"], ["mini"], ["1, 2, three, 4"], "not a box"),
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
