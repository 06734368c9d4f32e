"""Commands that ask a service, with its answers given; serve in tests/gateway/test_serve.py, batch in test_batch.py."""

import json
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from referent.client.http import Client
from referent.commands.app import app
from referent.core.api import EXAMPLE

MODEL = {
    "name": "mini",
    "version": "3",
    "digest": "sha256:0",
    "default": True,
    "ready": True,
    "present_threshold": 0.5,
    "evaluation": {"cards": {"n": 171, "mean_iou": 0.8425, "acc@0.5": 0.947}, "scenes": {"n": 9, "auroc": 0.9957}},
}
EXPRESSIONS = ["the queen", "the [LOC] king", "a dragon"]
BOX = (10, 20, 50, 60)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 80), "white").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """What was asked of a service that has a model and finds all but the dragon, in the same box."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"models": [MODEL]})
        normalized = (0.3, 0.5, 0.4, 0.5)
        results = [
            {"expression": e, "box_xyxy": BOX, "box_cxcywh_normalized": normalized, "score": s, "present": s > 0.5}
            for e, s in zip(EXPRESSIONS, (0.9, 0.8, 0.1), strict=True)
        ]
        return httpx.Response(200, json=EXAMPLE | {"results": results})

    monkeypatch.setattr("referent.commands.app.Client", partial(Client, transport=httpx.MockTransport(answer)))
    return requests


def run(*arguments: object, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"} | environment)
    return result.exit_code, result.stdout, result.stderr


def ground(*arguments: object, **environment: str) -> tuple[int, str, str]:
    return run("ground", *arguments, **environment)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]


def test_table_lists_every_expression(picture: Path) -> None:
    code, output, _ = ground(picture, *EXPRESSIONS)
    assert code == 0
    assert cells(output) == [
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
    monkeypatch.setattr("referent.commands.app.Client", Client)
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


def test_models_are_listed_with_their_figures() -> None:
    code, output, _ = run("models")
    assert code == 0
    assert "default: mini" in output
    assert cells(output) == [
        ["mini", "3", "yes", "cards", "171", "0.843", "0.947", ""],
        ["mini", "3", "yes", "scenes", "9", "", "", "0.996"],
    ]
    assert json.loads(run("models", "--json")[1]) == [MODEL]


def test_benchmarks_are_listed_and_run(capfd: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run("bench")
    assert code == 0
    assert "stages" in {row[0] for row in cells(output)}
    assert run("bench", "stages", "--help")[0] == 0
    assert "--rounds" in capfd.readouterr().out  # the script's own options
    code, _, errors = run("bench", "speed")
    assert (code, "no benchmark 'speed'; there are: " in errors) == (1, True)


def test_bench_without_a_checkout_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("referent.commands.app.BENCHMARKS", tmp_path / "benchmarks")
    code, _, errors = run("bench", "stages")
    assert (code, "in the project's checkout" in errors) == (1, True)


def test_export_has_the_options_of_the_module(tmp_path: Path) -> None:
    code, output, _ = run("export", "--help")
    assert (code, "--max-batch-size" in output) == (0, True)
    code, _, errors = run("export", tmp_path, "--name", "No Name")
    assert (code, "must match" in errors) == (2, True)


def test_shells_complete_commands() -> None:
    result = CliRunner().invoke(
        app,
        [],
        prog_name="referent",
        env={"_REFERENT_COMPLETE": "complete_bash", "COMP_WORDS": "referent ba", "COMP_CWORD": "1"},
    )
    assert result.stdout.split() == ["batch"]
