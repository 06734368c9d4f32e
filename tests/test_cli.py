"""referent ground, with the service's answer given; referent serve in tests/gateway/test_serve.py."""

import json
from pathlib import Path

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from referent.api import EXAMPLE
from referent.cli import app
from referent.client import Client

EXPRESSIONS = ["the queen", "the [LOC] king", "a dragon"]
BOX = (10, 20, 50, 60)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 80), "white").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that finds all but the dragon, in the same box."""

    def answer(request: httpx.Request) -> httpx.Response:
        normalized = (0.3, 0.5, 0.4, 0.5)
        results = [
            {"expression": e, "box_xyxy": BOX, "box_cxcywh_normalized": normalized, "score": s, "present": s > 0.5}
            for e, s in zip(EXPRESSIONS, (0.9, 0.8, 0.1), strict=True)
        ]
        return httpx.Response(200, json=EXAMPLE | {"results": results})

    monkeypatch.setattr("referent.cli.Client", lambda url: Client(url, transport=httpx.MockTransport(answer)))


def ground(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["ground", *map(str, arguments)], env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


def test_table_lists_every_expression(picture: Path) -> None:
    code, output, _ = ground(picture, *EXPRESSIONS)
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert rows == [
        ["the queen", "10.0, 20.0, 50.0, 60.0", "0.90", "yes"],
        ["the [LOC] king", "10.0, 20.0, 50.0, 60.0", "0.80", "yes"],
        ["a dragon", "10.0, 20.0, 50.0, 60.0", "0.10", "no"],
    ]


def test_json_is_the_whole_answer(picture: Path) -> None:
    code, output, _ = ground(picture, *EXPRESSIONS, "--json")
    assert code == 0
    answer = json.loads(output)
    assert set(answer) == set(EXAMPLE)
    assert [result["expression"] for result in answer["results"]] == EXPRESSIONS


def test_save_draws_what_is_there_in_colours_of_its_own(picture: Path) -> None:
    code, *_ = ground(picture, *EXPRESSIONS, "--save", picture.parent / "out.png")
    assert code == 0
    with Image.open(picture.parent / "out.png") as drawn:
        assert drawn.size == (100, 80)
        colours = {drawn.getpixel((x, 60)) for x in range(10, 51)} | {drawn.getpixel((10, y)) for y in range(20, 61)}
        assert (255, 255, 255) not in colours
        assert drawn.getpixel((90, 70)) == (255, 255, 255)


def test_missing_file_and_unknown_output_format_are_told(picture: Path) -> None:
    code, _, errors = ground(picture.parent / "none.png", "a")
    assert (code, "none.png" in errors) == (1, True)
    code, _, errors = ground(picture, "a", "--save", picture.parent / "out.xyz")
    assert (code, "unknown file extension" in errors) == (1, True)


def test_no_service_is_told(monkeypatch: pytest.MonkeyPatch, picture: Path) -> None:
    monkeypatch.setattr("referent.cli.Client", Client)
    code, _, errors = ground(picture, "a", "--url", "http://127.0.0.1:9")
    assert code == 1
    assert "start a service with: referent serve" in errors
