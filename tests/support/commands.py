"""The command line in this process, and a service whose answers are given."""

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from unittest.mock import patch

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


def run_main(main: Callable[[], object], *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A module's `main` in this process, as `python -m` runs it."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    words = [main.__module__, *map(str, arguments)]
    with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
            if isinstance(end.code, str):
                print(end.code, file=errors)
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
