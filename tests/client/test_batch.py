"""referent batch as a process of its own, which is killed, against a service that answers when it is told to."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from referent.client.batch import BatchItem, BatchResult, ResultsFile, ask, check_outputs, read_items
from referent.client.http import AsyncClient
from referent.core.api import EXAMPLE
from tests.support.http_server import serving
from tests.support.raw import ANSWER, raw_server, response

BATCH = [sys.executable, "-c", "from referent.commands.app import app; app()", "batch"]


class Service(ThreadingHTTPServer):
    """Answers every request but those about images whose name is among the `broken`; holds the one of number `hold`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[bytes] = []
        self.hold = -1
        self.broken: set[bytes] = set()
        self.held, self.released = threading.Event(), threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        image = re.findall(rb"image number \d+", body)[0]
        self.server.asked.append(image)
        if len(self.server.asked) == self.server.hold:
            self.server.held.set()
            self.server.released.wait(60)
        refused = image in self.server.broken
        content = json.dumps({"title": "Broken", "detail": "no image"} if refused else EXAMPLE).encode()
        with suppress(ConnectionError):  # of a client that was killed
            self.send_response(415 if refused else 200)
            self.send_header("content-type", "application/problem+json" if refused else "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(service := Service()):
        yield service
        service.released.set()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, as far as this service can tell."""
    (tmp_path / "images" / "below").mkdir(parents=True)
    for number in range(12):
        below = "below/" if number % 2 else ""
        (tmp_path / "images" / f"{below}{number}.jpg").write_bytes(b"image number %d" % number)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


@contextmanager
def until_held(service: Service, number: int, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A batch, one request at a time, whose request of that number, over all batches, waits for its answer."""
    service.hold = number
    service.held.clear()
    command = [*BATCH, *map(str, arguments), "--concurrency", "1", "--url", service.url]
    # Ctrl-C works in the foreground; tests that run in the background would pass on that it is ignored
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        assert service.held.wait(60)
        yield process
        process.kill()


def run(service: Service, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"REFERENT_URL": service.url}
    return subprocess.run([*BATCH, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_killed_twice_it_goes_on_without_loss_or_duplicates(service: Service, folder: Path) -> None:
    out = folder.parent / "results.jsonl"
    for number, finished in ((5, 4), (9, 7)):  # the request that was held at the first kill is sent once more
        with until_held(service, number, folder, "the queen", "--out", out) as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(rows(out)) == finished
    with out.open("a") as torn:
        torn.write('{"image":"a line that the kill cut off')
    service.hold = -1
    result = run(service, folder, "the queen", "--out", out)
    assert (result.returncode, "12 results, 5 of them new" in result.stdout) == (0, True), result.stderr
    assert sorted(row["image"] for row in rows(out)) == sorted(map(str, folder.rglob("*.jpg")))
    assert all(row["answer"]["model"] == "mini" for row in rows(out))
    assert len(service.asked) == 12 + 2
    assert run(service, folder, "the queen", "--out", out).returncode == 0
    assert len(service.asked) == 12 + 2  # the control: nothing is asked again


def test_ctrl_c_keeps_what_there_is_and_says_how_to_go_on(service: Service, folder: Path) -> None:
    out = folder.parent / "results.jsonl"
    with until_held(service, 4, folder, "the queen", "--out", out) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "3 of 12" in errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert len(rows(out)) == 3


def test_errors_are_recorded_and_asked_again_only_on_demand(service: Service, folder: Path) -> None:
    out = folder.parent / "results.jsonl"
    service.broken = {b"image number 3", b"image number 8"}
    result = run(service, folder, "the queen", "--out", out)
    assert (result.returncode, "--retry-errors" in result.stderr) == (1, True)
    failed = {Path(row["image"]).name: row["error"] for row in rows(out) if "error" in row}
    assert set(failed) == {"3.jpg", "8.jpg"}
    assert "no image" in failed["3.jpg"]
    service.broken = {b"image number 8"}
    assert run(service, folder, "the queen", "--out", out).returncode == 1
    assert len(service.asked) == 12
    assert run(service, folder, "the queen", "--out", out, "--retry-errors").returncode == 1
    assert len(service.asked) == 14
    assert len({row["image"] for row in rows(out)}) == len(rows(out)) == 12
    assert [Path(row["image"]).name for row in rows(out) if "error" in row] == ["8.jpg"]


def test_results_are_written_in_other_formats_too(service: Service, folder: Path) -> None:
    """All of them, those of an earlier run as well."""
    out, table, labels, coco = (folder.parent / name for name in ("out.jsonl", "out.csv", "labels", "out.json"))
    run(service, folder / "below", "the red cup", "--out", out)
    finished = run(service, folder, "the red cup", "--out", out, "--csv", table, "--yolo", labels, "--coco", coco)
    assert finished.returncode == 0, finished.stderr
    assert "12 rows -> " in finished.stdout
    assert len(table.read_text().splitlines()) == 13
    content = json.loads(coco.read_text())
    assert len(content["images"]) == 12
    assert [category["name"] for category in content["categories"]] == [r["expression"] for r in EXAMPLE["results"]]
    assert len(content["annotations"]) == 12 * sum(len(r["referents"]) for r in EXAMPLE["results"])
    assert len(list((labels / "labels").rglob("*.txt"))) == 12
    refused = run(service, folder, "the red cup", "--out", out, "--pictures", folder.parent / "drawn")
    assert refused.returncode == 1  # these are no pictures
    assert "0 pictures are in" in refused.stderr


def test_no_output_replaces_what_is_read_or_another(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "list.csv").write_text("image,expression\na.jpg,cup\n")
    items = read_items(tmp_path / "list.csv", [])
    for files, said in (
        ({"--out": "list.csv"}, r"--out .*list\.csv is also the list: name another file"),
        ({"--out": "o.jsonl", "--csv": "a.jpg"}, r"--csv .*a\.jpg is also an image"),
        ({"--out": "o.jsonl", "--csv": "o.jsonl"}, r"--csv .*o\.jsonl is also --out"),
        ({"--out": "o.jsonl", "--csv": "b", "--coco": "./b"}, r"--coco .*b is also --csv"),
    ):
        with pytest.raises(ValueError, match=said):
            check_outputs(tmp_path / "list.csv", items, {key: tmp_path / file for key, file in files.items()}, None)
    with pytest.raises(ValueError, match="whose images are asked about: name a folder elsewhere"):
        check_outputs(tmp_path, read_items(tmp_path, ["cup"]), {}, tmp_path / "drawn")
    check_outputs(tmp_path / "list.csv", items, {"--out": tmp_path / "o.jsonl", "--csv": None}, tmp_path / "drawn")


def test_no_service_is_told_and_nothing_is_recorded(folder: Path) -> None:
    out = folder.parent / "results.jsonl"
    command = [*BATCH, str(folder), "the queen", "--out", str(out), "--url", "http://127.0.0.1:9"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "start a service with: referent serve" in result.stderr
    assert out.read_text() == ""


def outcomes(url: str, items: list[BatchItem], out: Path, **options: Any) -> dict[str, str]:
    """What is written for each image: the answer's model, or the error."""

    async def run() -> None:
        async with AsyncClient(url, **options) as client:
            with ResultsFile(out) as results:
                async for _ in ask(client, items, results, 2):
                    pass

    asyncio.run(run())
    return {Path(row["image"]).name: row.get("error") or row["answer"]["model"] for row in rows(out)}


def test_names_that_are_not_utf8_get_a_line_each_and_are_asked_once(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate((b"a.jpg", b"caf\xe9.jpg", b"\xff\xfe.jpg", "café.jpg".encode())):
        (folder / os.fsdecode(name)).write_bytes(b"image number %d" % number)
    (tmp_path / "list.txt").write_bytes(b"images/caf\xe9.jpg\nimages/\xff\xfe.jpg\nimages/none\xe9.jpg\n")
    expected = dict.fromkeys(("a.jpg", "caf\\xe9.jpg", "\\xff\\xfe.jpg", "café.jpg"), "mini")
    out = tmp_path / "out.jsonl"
    assert outcomes(service.url, read_items(folder, ["q"]), out) == expected
    assert outcomes(service.url, read_items(folder, ["q"]), out) == expected
    assert len(service.asked) == 4
    found = outcomes(service.url, read_items(tmp_path / "list.txt", ["q"]), tmp_path / "of list.jsonl")
    assert found.pop("none\\xe9.jpg").startswith("there is no file")
    assert set(found.values()) == {"mini"}


def test_an_expression_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"caf\\xe9 is not UTF-8"):
        read_items(tmp_path, ["caf\udce9"])


def test_a_file_that_cannot_be_used_is_one_failed_line(service: Service, folder: Path) -> None:
    for file in folder.rglob("[1-9]*.jpg"):
        file.unlink()
    with (folder / "huge.jpg").open("wb") as stream:
        stream.truncate(2**40)
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    (folder / "folder.jpg").symlink_to(folder)
    (folder / "really a folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")  # nobody writes into it
    (folder.parent / "list.txt").write_text("images/folder.jpg\nimages/0.jpg/a.jpg\n")
    items = read_items(folder, ["q"]) + read_items(folder.parent / "list.txt", ["q"])
    out = folder.parent / "out.jsonl"
    found = outcomes(service.url, items, out)
    assert found.pop("0.jpg") == "mini"
    assert "too large" in found.pop("huge.jpg")
    assert "no file" in found.pop("lost.jpg")
    assert "is a folder" in found.pop("folder.jpg")
    assert "no file" in found.pop("a.jpg")
    assert not found
    assert len(outcomes(service.url, items, out)) == len(items) == 5
    assert len(service.asked) == 1


def test_images_in_linked_folders_are_asked_about_once(tmp_path: Path) -> None:
    """A data set may be links to where its pictures are, some of them to each other."""
    for place in ("elsewhere/a.jpg", "images/real/b.jpg", "images/c.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"")
    images = tmp_path / "images"
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "again").symlink_to(images / "real")
    (images / "real" / "up").symlink_to("..")
    found = [str(Path(item.image).relative_to(images)) for item in read_items(images, ["q"])]
    assert found == ["c.jpg", "linked/a.jpg", "real/b.jpg"]


def test_an_image_whose_connection_is_always_lost_does_not_stop_the_others(tmp_path: Path) -> None:
    images = {name: name.encode() for name in ("one.jpg", "two.jpg", "three.jpg")}
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
    asked: list[bytes] = []

    def talk(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        if request.startswith(b"GET"):
            connection.sendall(response(b"", "404 Not Found"))  # a service that knows no metadata still answers
        elif b"two.jpg" in request:
            raise ConnectionResetError
        else:
            connection.sendall(response(ANSWER))

    items, out = read_items(tmp_path, ["q"]), tmp_path / "out.jsonl"
    with raw_server(talk) as url:
        found = outcomes(url, items, out, timeout_s=1)
        assert "no answer" in found.pop("two.jpg")
        assert found == {"one.jpg": "mini", "three.jpg": "mini"}
        asked.clear()
        outcomes(url, items, out)
        assert not asked


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no images"):
        read_items(tmp_path, ["q"])


def write(out: Path, model: str | None = None) -> None:
    with ResultsFile(out, model) as results:
        results.write(BatchResult(image="a.jpg", expressions=("q",), model=model, error="no"))


@pytest.mark.parametrize("content", ["mine\n", "mine", '{"box": 1}\n', '{"box"'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    other = tmp_path / "notes.txt"
    other.write_text(content)
    with pytest.raises(ValueError, match="not a result of referent batch"):
        ResultsFile(other)
    assert other.read_text() == content


def test_results_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    write(tmp_path / "out.jsonl", "mini")
    with pytest.raises(ValueError, match="another model, mini"):
        ResultsFile(tmp_path / "out.jsonl", "maxi")


def test_two_batches_do_not_write_one_file(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "out.jsonl"), pytest.raises(ValueError, match="another process is writing"):
        ResultsFile(tmp_path / "out.jsonl")
    write(tmp_path / "out.jsonl")
    assert len(rows(tmp_path / "out.jsonl")) == 1


def test_a_real_picture_is_found_in_folders(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "A.PNG")
    assert read_items(tmp_path, ["q", "r"]) == [BatchItem(str(tmp_path / "A.PNG"), ("q", "r"))]
