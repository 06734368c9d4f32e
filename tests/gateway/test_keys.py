"""API keys: made by the command, hashed in the file, asked for by scope, rotated while the service runs."""

import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway import keys
from gateway.settings import Settings
from tests.support.gateway import Start
from tests.support.requests import in_json, jpeg

GOOD = in_json(jpeg(), "the queen")
Make = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def make(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Make:
    """Makes a key with the command; returns it."""

    def make(name: str, *scopes: str) -> str:
        arguments = [argument for scope in scopes for argument in ("--scope", scope)]
        monkeypatch.setattr("sys.argv", ["keys", name, *arguments, "--file", str(file)])
        keys.main()
        return capsys.readouterr().out.split()[-1]  # after what the service logs here

    return make


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.anyio
async def test_each_path_asks_for_its_scope(start: Start, file: Path, make: Make) -> None:
    infer, both = make("alice"), make("ops", "infer", "admin")
    async with start(keys_file=file) as client:
        for headers, ground, reload in (
            ({}, 401, 401),
            (bearer("wrong"), 401, 401),
            (bearer(infer), 200, 403),
            ({"X-API-Key": infer}, 200, 403),
            (bearer(both), 200, 200),
        ):
            assert (await client.post("/v1/ground", json=GOOD, headers=headers)).status_code == ground
            assert (await client.get("/v1/models", headers=headers)).status_code == ground
            assert (await client.post("/v1/reload", headers=headers)).status_code == reload
        assert (await client.get("/nowhere")).status_code == 401


@pytest.mark.anyio
async def test_the_document_says_where_a_key_is_needed(start: Start, file: Path, make: Make) -> None:
    make("alice")
    async with start(keys_file=file) as client:
        document = (await client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "header"}
    assert document["paths"]["/v1/ground"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "security" not in document["paths"]["/livez"]["get"]
    async with start() as client:
        assert "securitySchemes" not in (await client.get("/openapi.json")).json()["components"]


@pytest.mark.anyio
async def test_refusals_are_problems_that_tell_how_and_health_is_free(start: Start, file: Path, make: Make) -> None:
    make("alice")
    async with start(keys_file=file) as client:
        refused = await client.post("/v1/ground", content=b"", headers={"Content-Type": "application/json"})
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer KEY" in refused.json()["detail"]
        for path in ("/livez", "/readyz", "/health", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


@pytest.mark.anyio
async def test_keys_rotate_while_the_service_runs(start: Start, file: Path, make: Make) -> None:
    old = make("alice")
    async with start(keys_file=file) as client:

        async def status(key: str) -> int:
            return (await client.get("/v1/models", headers=bearer(key))).status_code

        new = make("alice")
        assert (await status(old), await status(new)) == (200, 200)
        file.write_text(file.read_text().splitlines()[1])
        assert (await status(old), await status(new)) == (401, 200)
        file.write_text("alice")  # a mistake: the keys before stay
        with capture_logs() as lines:
            assert await status(new) == 200
        assert "line 1 is not NAME:SCOPES:SHA256" in lines[0]["fault"]
        file.unlink()
        assert await status(new) == 200


@contextmanager
def no_descriptor(file: Path) -> Iterator[None]:
    """Nothing more can be opened in this process."""
    before, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def instead(file: Path, put: Callable[[Path], object]) -> Iterator[None]:
    """Something else stands in the file's place for a while."""
    kept = file.rename(file.with_name("kept"))
    put(file)
    try:
        yield
    finally:
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        kept.rename(file)


@pytest.mark.parametrize(
    "unreadable",
    [
        no_descriptor,
        partial(instead, put=lambda file: None),
        partial(instead, put=Path.mkdir),
        partial(instead, put=lambda file: file.write_bytes(b"\xff")),
        partial(instead, put=lambda file: file.symlink_to(file)),
    ],
    ids=["no descriptors", "missing", "folder", "garbage", "circular link"],
)
def test_key_is_gone_although_the_file_could_not_be_read_at_first(
    file: Path, make: Make, unreadable: Callable[[Path], AbstractContextManager[None]]
) -> None:
    removed, kept = make("alice"), make("ops")
    found = keys.Keys(file)
    assert found.find(removed)
    file.write_text(file.read_text().splitlines()[1])
    with unreadable(file), capture_logs() as lines:
        assert found.find(kept)
        assert found.find(kept)
    assert [line["event"] for line in lines] == ["keys can't be read, those before stay"]
    assert found.find(removed) is None
    assert found.find(kept)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: f"#{text[1:]}",
        lambda text: text.replace("admin", "infer"),
        lambda text: f"{text[:-65]}{'0' * 64}\n",
    ],
    ids=["comment", "another scope", "another's hash"],
)
def test_edit_in_place_counts_although_size_and_time_stay(file: Path, make: Make, edit: Callable[[str], str]) -> None:
    secret = make("alice", "admin")
    found, before, edited = keys.Keys(file), file.stat(), edit(file.read_text())
    key = found.find(secret)
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # some file systems' clocks tick every 4 ms
        file.write_text(edited)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert key
    assert found.find(secret) != key


@pytest.mark.anyio
async def test_rate_and_log_go_by_the_keys_name(start: Start, file: Path, make: Make) -> None:
    alice, bob = make("alice"), make("bob")
    async with start(keys_file=file, rate_limit="1/minute") as client:
        with capture_logs() as lines:
            statuses = [
                (await client.post("/v1/ground", json=GOOD, headers=bearer(key))).status_code
                for key in (alice, alice, bob)
            ]
    assert statuses == [200, 429, 200]
    assert [line["key"] for line in lines if line["event"] == "request"] == ["alice", "alice", "bob"]
    assert alice not in str(lines)


def test_file_holds_hashes_alone_and_is_the_owners(file: Path, make: Make) -> None:
    key = make("alice", "infer", "admin")
    assert key not in file.read_text()
    assert file.read_text().startswith("alice:infer,admin:")
    assert os.stat(file).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("end", ["", "  ", "\n# the last line", "\n"], ids=["none", "spaces", "comment", "newline"])
def test_key_gets_a_line_of_its_own(file: Path, make: Make, end: str) -> None:
    first = make("alice")
    file.write_text(file.read_text().rstrip("\n") + end)
    second = make("bob")
    found = keys.Keys(file)
    assert [key and key.name for key in map(found.find, (first, second))] == ["alice", "bob"]
    assert "\n\n" not in file.read_text()


@pytest.mark.parametrize(
    ("put", "path"),
    [
        (lambda file: None, "none/keys"),
        (Path.mkdir, "keys"),
        (Path.touch, "keys/keys"),
        (lambda file: file.symlink_to(file), "keys"),
        (lambda file: file.symlink_to("/dev/full"), "keys"),
        (os.mkfifo, "keys"),
    ],
    ids=["no folder", "folder", "file as folder", "circular link", "full disk", "pipe"],
)
def test_file_that_cannot_be_written_is_named_with_a_remedy(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    put: Callable[[Path], object],
    path: str,
) -> None:
    put(file)
    monkeypatch.setattr("sys.argv", ["keys", "alice", "--file", str(file.parent / path)])
    with pytest.raises(SystemExit, match=rf"^{re.escape(str(file.parent / path))} .*: give --file a file ") as exit:
        keys.main()
    assert "\n" not in str(exit.value)
    assert not capsys.readouterr().out  # a key that no file has would be useless


@pytest.mark.parametrize("line", ["alice", "alice:infer:abc", f"alice:root:{'0' * 64}"])
def test_line_that_is_no_key_is_named(file: Path, line: str) -> None:
    file.write_text(f"# who\n\n{line}\n")
    with pytest.raises(ValueError, match="keys, line 3 is not NAME:SCOPES:SHA256"):
        keys.Keys(file)


def test_name_must_fit_the_file(make: Make) -> None:
    with pytest.raises(SystemExit, match="'a:b' is not a name"):
        make("a:b")


def test_keys_or_loopback_or_said_so(file: Path) -> None:
    for changes in ({"host": "localhost"}, {"host": "::1"}, {"keys_file": file}, {"open_access": True}):
        Settings(**{"host": "0.0.0.0", **changes})


@pytest.mark.anyio
async def test_cors_is_off_unless_an_origin_is_named(start: Start) -> None:
    origin = {"Origin": "https://app.example"}
    async with start() as client:
        assert "access-control-allow-origin" not in (await client.get("/livez", headers=origin)).headers
    async with start(cors_origins=["https://app.example"]) as client:
        answer = await client.post("/v1/ground", headers=origin)  # a problem: the page may read it too
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        asked = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        assert (await client.options("/v1/ground", headers=asked)).status_code == 200
        other = await client.get("/livez", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
