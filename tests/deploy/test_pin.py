"""`make pin`: digests beside tags, by a docker that is asked and answers as the real one does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

DOCKER = """#!/bin/sh
[ "$1 $2 $3 $4 $5" = "buildx imagetools inspect --format {{.Manifest.Digest}}" ] || exit 9
case $6 in *missing*) echo "ERROR: $6: not found" >&2; exit 1;; *odd*) echo latest; exit;; esac
printf 'sha256:%s\\n' "$(printf %s "$6" | sha256sum | cut -d' ' -f1)"
"""
COMPOSE = """services:
  one:
    image: prom/prometheus:v3.5.0
  own:
    image: referent-gateway
  other:
    image: registry.example:5000/team/other:1.0-a_b  # why
"""


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    return folder


def pin(path: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "deploy/pin.py", *files]
    return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)


def test_tags_keep_their_names_and_get_digests_once(tmp_path: Path, docker: Path) -> None:
    compose, dockerfile = tmp_path / "compose.yml", tmp_path / "Dockerfile"
    compose.write_text(COMPOSE)
    dockerfile.write_text("FROM python:3.13-slim AS build\nRUN true\nFROM build\n")
    for _ in range(2):
        assert pin(f"{docker}:{os.environ['PATH']}", compose, dockerfile).returncode == 0
    digest = "@sha256:[0-9a-f]{64}"
    assert re.search(rf"^    image: prom/prometheus:v3\.5\.0{digest}$", compose.read_text(), re.M)
    assert re.search(
        rf"^    image: registry\.example:5000/team/other:1\.0-a_b{digest}  # why$", compose.read_text(), re.M
    )
    assert re.fullmatch(rf"FROM python:3\.13-slim{digest} AS build\nRUN true\nFROM build\n", dockerfile.read_text())
    assert re.sub(digest, "", compose.read_text()) == COMPOSE


@pytest.mark.parametrize(
    ("image", "reason"),
    [("team/missing:1", "no digest of team/missing:1: ERROR"), ("odd:1", "no digest of odd:1: latest")],
)
def test_image_without_a_digest_stops_it_and_nothing_is_written(
    tmp_path: Path, docker: Path, image: str, reason: str
) -> None:
    file = tmp_path / "compose.yml"
    file.write_text(f"{COMPOSE}  bad:\n    image: {image}\n")
    before = file.read_text()
    done = pin(f"{docker}:{os.environ['PATH']}", file)
    assert (done.returncode, file.read_text()) == (1, before)
    assert done.stderr.startswith(reason)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("path", "file", "reason"), [("", COMPOSE, "docker is needed"), ("", None, "No such file")])
def test_what_is_lacking_is_named(tmp_path: Path, path: str, file: str | None, reason: str) -> None:
    if file:
        (tmp_path / "compose.yml").write_text(file)
    done = pin(path, tmp_path / "compose.yml")
    assert (done.returncode, reason in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_every_image_of_a_vendor_stands_where_it_is_pinned() -> None:
    pinned = (ROOT / "deploy/pin.py").read_text()
    listed = re.findall(r'"([\w./-]+)"', re.search(r"^FILES = (.*)$", pinned, re.M)[1])
    for file in (
        *ROOT.glob("*/Dockerfile"),
        ROOT / "docker-compose.yml",
        *(ROOT / "deploy/kubernetes").rglob("*.yaml"),
    ):
        images = re.findall(r"^\s*(?:FROM|image:)\s+(\S+:\S+)", file.read_text(), re.M)
        vendors = [image for image in images if not image.startswith("registry.example.com/")]
        assert not vendors or str(file.relative_to(ROOT)) in listed, file
