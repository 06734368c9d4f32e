"""The command line in this process, and a service whose answers are given."""

from functools import partial

import httpx
import pytest
from typer.testing import CliRunner

from referent.client.http import Client
from referent.commands.app import app
from referent.core.api import EXAMPLE
from tests.support.answers import SERVED_MODEL, box_answer

EXPRESSIONS = ["the queen", "the [LOC] king", "a dragon"]
BOX = (10, 20, 50, 60)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """What was asked of a service that has a model and finds all but the dragon, in the same box."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"models": [SERVED_MODEL]})
        scores = zip(EXPRESSIONS, (0.9, 0.8, 0.1), strict=True)
        results = [box_answer(expression, BOX, score, score > 0.5).model_dump() for expression, score in scores]
        return httpx.Response(200, json=EXAMPLE | {"results": results})

    client = partial(Client, transport=httpx.MockTransport(answer))
    monkeypatch.setattr("referent.commands.ground.Client", client)
    monkeypatch.setattr("referent.commands.models.Client", client)
    return requests


def run(*arguments: object, stdin: bytes | None = None, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)], stdin, {"COLUMNS": "120"} | environment)
    return result.exit_code, result.stdout, result.stderr


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
