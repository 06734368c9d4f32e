"""API keys: who may ask for what.

    python -m gateway.keys NAME [--scope infer] [--scope admin] [--file FILE]

makes a key, prints it once, and appends its line NAME:SCOPES:SHA256 to the file, which REFERENT_KEYS_FILE names. Keys
are long and random, so a plain hash reveals nothing about them. The service notices changes of the file: to rotate a
key, add another under the same name; to remove one, delete its line.
"""

import argparse
import hashlib
import hmac
import os
import re
import secrets
import sys
from pathlib import Path
from typing import NamedTuple

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.web import ASSETS

SCOPES = ("infer", "admin")
ADMIN_PATHS = {"/v1/reload"}
# Probes have no keys, and the API's description and the page (which asks for a key) are not secret. Paths in neither
# set need the scope `infer`.
FREE_PATHS = {
    "/",
    "/livez",
    "/readyz",
    "/healthz",
    "/health",
    "/v2/health/live",
    "/v2/health/ready",
    "/docs",
    "/openapi.json",
}
LINE = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<scopes>\w+(,\w+)*):(?P<digest>[0-9a-f]{64})")

log = structlog.get_logger("gateway")


class UnauthenticatedError(PermissionError):
    """The key is missing or unknown."""

    headers = {"WWW-Authenticate": "Bearer"}  # noqa: RUF012  HTTP requires it with a 401


class ForbiddenError(PermissionError):
    """The key lacks the scope."""


class Key(NamedTuple):
    """A line of the file."""

    name: str
    scopes: frozenset[str]
    digest: str  # sha256, hexadecimal


class Keys:
    """The keys of a file, read again when it changes. Raises OSError or ValueError for a file that can't be used."""

    def __init__(self, file: Path) -> None:
        self._file, self._fault = file, ""
        self._seen = self._signature()
        self._keys = read_keys(file)

    def find(self, secret: str) -> Key | None:
        """The key with this secret; takes the same time however much of the secret is right."""
        self._follow()
        digest = _digest(secret)
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None

    def _follow(self) -> None:
        if (now := self._signature()) == self._seen:
            return
        try:
            self._keys = read_keys(self._file)
        except (OSError, ValueError) as error:  # the next request tries again, since only this read may have failed
            if str(error) != self._fault:
                log.error("keys can't be read, those before stay", fault=str(error))
            self._fault = str(error)
        else:
            self._seen, self._fault = now, ""
            log.info("keys read again", keys=len(self._keys))

    def _signature(self) -> tuple[int, ...]:
        try:
            status = self._file.stat()
        except OSError:
            return ()
        # an edit in place may keep the size, and set back the time of modification, but not st_ctime
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


class Guard:
    """ASGI middleware: raises unless the request has a key with the scope of its path; leaves the key's name in
    `request.state.key`."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in FREE_PATHS and not scope["path"].startswith(f"{ASSETS}/"):
            key = self._keys.find(_secret(Headers(scope=scope)))
            needed = "admin" if scope["path"] in ADMIN_PATHS else "infer"
            if key is None:
                raise UnauthenticatedError("send a valid key as Authorization: Bearer KEY, or as X-API-Key: KEY")
            if needed not in key.scopes:
                raise ForbiddenError(f"the key {key.name!r} lacks the scope {needed!r}: use one that has it")
            scope.setdefault("state", {})["key"] = key.name
        await self._app(scope, receive, send)


def read_keys(file: Path) -> list[Key]:
    """The keys of a file. Raises OSError, and ValueError naming an invalid line."""
    keys = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        scopes = frozenset(match["scopes"].split(",")) if match else frozenset()
        if not match or not scopes <= set(SCOPES):
            raise ValueError(f"{file}, line {number} is not NAME:SCOPES:SHA256 with scopes of {', '.join(SCOPES)}")
        keys.append(Key(match["name"], scopes, match["digest"]))
    return keys


def new_key(name: str, scopes: list[str]) -> tuple[str, str]:
    """A key and its line in the file."""
    secret = f"rf_{secrets.token_urlsafe(32)}"
    return secret, f"{name}:{','.join(scopes)}:{_digest(secret)}"


def append(line: str, file: Path) -> None:
    """Gives the line to the file, which is made for its owner alone if there is none. Raises OSError."""
    with open(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as keys:
        keys.seek(max(keys.seek(0, os.SEEK_END) - 1, 0))
        newline = "" if keys.read(1) in (b"", b"\n") else "\n"  # an editor may have left none
        keys.write(f"{newline}{line}\n".encode())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _secret(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.keys", description="Makes an API key.")
    parser.add_argument("name", help="name of the key's owner; rates and log lines use it")
    parser.add_argument(
        "--scope", choices=SCOPES, action="append", help="scope of the key; can be repeated; default: infer"
    )
    parser.add_argument("--file", type=Path, help="file to which the hashed key is appended; default: print it")
    args = parser.parse_args()
    secret, line = new_key(args.name, args.scope or ["infer"])
    if not LINE.fullmatch(line):
        sys.exit(f"{args.name!r} is not a name of letters, digits, '.', '_' and '-', up to 64 of them")
    if args.file:
        try:
            append(line, args.file)
        except OSError as error:
            remedy = "give --file a file that you may read and write, in a folder that exists"
            sys.exit(f"{args.file} can't be written, {error.strerror or error}: {remedy}")
    else:
        print(line, file=sys.stderr)
    print(secret)


if __name__ == "__main__":
    main()
