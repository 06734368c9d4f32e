import json
from pathlib import Path

import httpx
import pytest
from PIL import Image

from referent.core.api import EXAMPLE
from tests.support.commands import EXPRESSIONS, cells, run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 80), "white").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def ground(*arguments: object, **environment: str) -> tuple[int, str, str]:
    return run("ground", *arguments, **environment)


@pytest.mark.usefixtures("asked")
def test_table_lists_every_expression(picture: Path) -> None:
    code, output, _ = ground(picture, *EXPRESSIONS)
    assert code == 0
    assert cells(output) == [
        ["the queen", "10.0, 20.0, 50.0, 60.0", "0.90", "yes"],
        ["the [LOC] king", "10.0, 20.0, 50.0, 60.0", "0.80", "yes"],
        ["a dragon", "10.0, 20.0, 50.0, 60.0", "0.10", "no"],
    ]


@pytest.mark.usefixtures("asked")
def test_json_is_the_whole_answer(picture: Path) -> None:
    code, output, _ = ground(picture, *EXPRESSIONS, "--json")
    assert code == 0
    answer = json.loads(output)
    assert set(answer) == set(EXAMPLE)
    assert [result["expression"] for result in answer["results"]] == EXPRESSIONS


@pytest.mark.usefixtures("asked")
def test_save_draws_what_is_there_in_colours_of_its_own(picture: Path) -> None:
    code, *_ = ground(picture, *EXPRESSIONS, "--save", picture.parent / "out.png")
    assert code == 0
    with Image.open(picture.parent / "out.png") as drawn:
        assert drawn.size == (100, 80)
        colours = {drawn.getpixel((x, 60)) for x in range(10, 51)} | {drawn.getpixel((10, y)) for y in range(20, 61)}
        assert (255, 255, 255) not in colours
        assert drawn.getpixel((90, 70)) == (255, 255, 255)


@pytest.mark.usefixtures("asked")
def test_missing_file_and_unknown_output_format_are_told(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(picture.parent)
    code, _, errors = ground("none.png", "a")
    assert (code, "none.png" in errors) == (1, True)
    code, _, errors = ground(picture, "a", "--save", picture.parent / "out.xyz")
    assert (code, "unknown file extension" in errors) == (1, True)


def test_no_service_is_told(picture: Path) -> None:
    code, _, errors = ground(picture, "a", "--url", "http://127.0.0.1:9")
    assert code == 1
    assert "start a service with: referent serve" in errors


def test_key_and_url_come_from_options_or_the_environment(picture: Path, asked: list[httpx.Request]) -> None:
    ground(picture, *EXPRESSIONS, "--api-key", "k1", "--url", "http://one")
    ground(picture, *EXPRESSIONS, REFERENT_API_KEY="k2", REFERENT_URL="http://two")
    said = [(request.url.host, request.headers["authorization"]) for request in asked]
    assert said == [("one", "Bearer k1"), ("two", "Bearer k2")]


def test_an_image_by_url_is_asked_for_and_not_drawn(tmp_path: Path, asked: list[httpx.Request]) -> None:
    code, *_ = ground("https://images.example.org/a.jpg", *EXPRESSIONS)
    assert (code, json.loads(asked[0].read())["image"]["url"]) == (0, "https://images.example.org/a.jpg")
    code, _, errors = ground("https://images.example.org/a.jpg", *EXPRESSIONS, "--save", tmp_path / "out.png")
    assert (code, "given by URL" in errors) == (1, True)


def test_a_dash_is_standard_input(picture: Path, asked: list[httpx.Request]) -> None:
    code, *_ = run("ground", "-", *EXPRESSIONS, "--save", picture.parent / "out.png", stdin=picture.read_bytes())
    assert code == 0
    assert picture.read_bytes() in asked[0].read()
    with Image.open(picture.parent / "out.png") as drawn:
        assert drawn.size == (100, 80)
