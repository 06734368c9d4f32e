"""Both clients against good answers; against the gateway itself in tests/gateway/test_serve.py."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from referent.client.http import AsyncClient, Client
from referent.client.results import Grounding
from referent.core.api import EXAMPLE
from tests.support.answers import SERVED_MODEL
from tests.support.clients import METADATA, Ask, client, good, png, sent_image
from tests.support.raw import ANSWER, raw_server, response


def test_answer_is_typed(ask: Ask) -> None:
    answer = ask(good, "ground", b"image", "the queen")
    assert isinstance(answer, Grounding)
    assert answer.results[0].box_xyxy == (12.1, 80.4, 140.9, 260.0)
    assert answer.results[0].present is True
    assert answer.timings_ms.inference == 41.0
    assert answer.elapsed_ms > 0


def test_image_may_be_a_file_bytes_a_picture_or_an_array(tmp_path: Path, ask: Ask) -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(200, json=EXAMPLE)

    picture = Image.new("RGB", (3, 2), "red")
    (tmp_path / "red.png").write_bytes(png(picture))
    for image in (tmp_path / "red.png", str(tmp_path / "red.png"), png(picture), picture, np.asarray(picture)):
        ask(answer, "ground", image, ["the queen", "the king"], model="mini")
    for body in bodies:
        assert np.array_equal(sent_image(body), picture)
        assert body.count(b'name="expression"') == 2
        assert b'name="model"\r\n\r\nmini' in body


def test_a_picture_is_sent_as_it_lies_and_on_white() -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return httpx.Response(200, json=EXAMPLE)

    turned, exif = Image.new("RGBA", (3, 2), (255, 0, 0, 0)), Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    client(answer).ground(turned, "a")
    sent = sent_image(bodies[0])
    assert (sent.size, sent.getexif().get(0x0112), sent.getpixel((0, 0))) == ((3, 2), None, (255, 255, 255))


def test_a_url_is_sent_for_the_service_to_fetch(ask: Ask) -> None:
    bodies: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.read()))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", "https://images.example.org/a.jpg", "the queen", model="mini")
    assert bodies == [
        {"image": {"url": "https://images.example.org/a.jpg"}, "expressions": ["the queen"], "model": "mini"}
    ]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint8), "4x4 uint8"),
        (np.zeros((4, 4, 3), np.float32), "4x4x3 float32"),
        (np.zeros((4, 4, 4), np.uint8), "4x4x4 uint8"),
        (np.zeros((0, 4, 3), np.uint8), "0x4x3 uint8"),
    ],
    ids=["grey", "float", "four channels", "empty"],
)
def test_an_array_that_is_no_image_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*\(height, width, 3\)"):
        client(good).ground(array, "a")


@pytest.mark.parametrize("image", [b"bytes", "https://images.example.org/a.jpg"], ids=["form", "json"])
def test_options_of_an_answer_are_asked_for(ask: Ask, image: bytes | str) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read().replace(b"\r\n", b""))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", image, "a", max_instances=7, heatmap=True)
    ask(answer, "ground", image, "a")
    assert b"max_instances" in bodies[0]
    assert b"heatmap" in bodies[0]
    assert b"7" in bodies[0].partition(b"max_instances")[2][:4]
    assert b"max_instances" not in bodies[1]


@pytest.mark.parametrize("image", [b"bytes", "https://images.example.org/a.jpg"], ids=["form", "json"])
@pytest.mark.parametrize("wrong", [0, -1, 65])
def test_an_option_that_the_service_refuses_is_sent_as_it_is(ask: Ask, image: bytes | str, wrong: int) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read().replace(b"\r\n", b""))
        return httpx.Response(200, json=EXAMPLE)

    ask(answer, "ground", image, "a", max_instances=wrong)
    assert f"{wrong}".encode() in bodies[0].partition(b"max_instances")[2][:6]


def test_models_and_metadata_are_typed(ask: Ask) -> None:
    answers = {"/v1/models": {"models": [SERVED_MODEL]}, "/v1/metadata": METADATA}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answers[request.url.path])

    assert ask(answer, "models")[0].version == "3"
    assert ask(answer, "metadata").limits.expressions == 5


def test_one_client_serves_several_event_loops() -> None:
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url:
        client = AsyncClient(url)
        for _ in range(3):
            assert asyncio.run(client.ground(b"image", "a")).model == "mini"
        with ThreadPoolExecutor(4) as pool:  # and at the same time
            answers = pool.map(lambda _: asyncio.run(client.ground(b"image", "a")), range(8))
            assert [answer.model for answer in answers] == ["mini"] * 8


def test_a_client_serves_threads_an_event_loop_and_a_process_that_was_forked(tmp_path: Path) -> None:
    with raw_server(lambda connection, _: connection.sendall(response(ANSWER))) as url, Client(url) as client:
        with ThreadPoolExecutor(4) as pool:
            assert len({answer.model for answer in pool.map(lambda _: client.ground(b"", "a"), range(8))}) == 1

        async def inside() -> str:
            return client.ground(b"image", "a").model

        assert asyncio.run(inside()) == "mini"
        process = get_context("fork").Process(target=client.ground, args=(b"image", "a"))
        process.start()
        process.join(30)
        assert process.exitcode == 0


def test_nothing_is_printed_or_logged_unless_it_is_asked_for() -> None:
    program = (
        "import httpx; from referent import Client; turns = iter(range(2))\n"
        "def answer(request): return httpx.Response(200 if next(turns) else 503)\n"
        "try: Client(transport=httpx.MockTransport(answer)).models()\n"
        "except ConnectionError: pass\n"
    )
    quiet, verbose = (
        subprocess.run([sys.executable, "-c", f"{first}{program}"], capture_output=True, text=True, timeout=60)
        for first in ("", "import logging; logging.basicConfig(level='INFO')\n")
    )
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert "INFO:referent.client.http:asking again in" in verbose.stderr
