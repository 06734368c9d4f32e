"""The commands of the pages that newcomers read: each is run, in order, against the real service."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.releases import publish_tiny
from tests.support.tiny import MODEL_REPOSITORY

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/api.md", "docs/models.md", "docs/tutorial.md", "docs/troubleshooting.md")
STORY = "docs/tutorial.md"  # each block needs what those before it made: they are one test
FENCE = re.compile(r"^```(?P<language>\w*)(?P<mark> no-test)?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNERS = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
}
SHOWN = {"json", "text"}
# what takes long, needs weights or data that are not here, or is what runs these tests
UNTESTED = {
    "make serve",
    "referent export CHECKPOINT",
    "referent data prepare",
    "referent import FORMAT",
    "hf download",
}
PROBLEM = "urn:referent:problem"


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    is_run: bool
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    content = (ROOT / page).read_text()
    found = [
        Block(page, content.count("\n", 0, m.start()) + 1, m["language"], m["mark"] is None, m["text"])
        for m in FENCE.finditer(content)
    ]
    if page != STORY:
        return found
    shown = [block for block in found if block.language in SHOWN]
    told = [block for block in found if block.language not in SHOWN]
    return [*shown, told[0]._replace(text="".join(block.text for block in told))]


BLOCKS = [block for page in PAGES for block in blocks(page)]


class Service(NamedTuple):
    url: str
    grpc_url: str
    folder: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A checkout as far as the pages use it; what their commands write stays here. `cards` is served beside mini."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(MODEL_REPOSITORY, folder / "model_repository")
    publish_tiny(folder / "model_repository", "cards")
    for name in ("README.md", "examples", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "run").mkdir()
    (folder / "run/best").symlink_to(tiny_checkpoint)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """`referent serve`, which `make serve` runs."""
    command = [f"{sys.prefix}/bin/referent", "serve", "--port", "0", "--grpc-port", "0"]
    with (
        (folder / "service.log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment() | {"REFERENT_METRICS_PORT": "0", "REFERENT_DRAIN_GRACE_S": "0"},
            stdout=subprocess.PIPE, stderr=log, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout
        ready = next((line for line in process.stdout if "is ready" in line), "")
        assert ready, (folder / "service.log").read_text()
        yield Service(*re.findall(r"is ready at (\S+) .*gRPC at ([\d.:]+)", ready)[0], folder)
        process.terminate()


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.timeout(600)  # the tutorial trains and exports
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_run and block.language in RUNNERS], ids=str)
def test_commands_of_the_page_work(service: Service, block: Block) -> None:
    if block.language == "js" and not shutil.which("node"):
        pytest.skip("no node to run JavaScript")
    text = block.text.replace("http://127.0.0.1:8000", service.url).replace("127.0.0.1:8001", service.grpc_url)
    text = text.replace("--steps 60 --eval-steps 20", "--steps 6 --eval-steps 3")  # a tenth shows that it runs
    result = subprocess.run(
        [*RUNNERS[block.language], text], cwd=service.folder, env=environment() | {"REFERENT_URL": service.url},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    shows_a_problem = "model=maxi" in block.text
    assert (PROBLEM in result.stdout) == shows_a_problem, result.stdout


def test_the_notebook_runs(service: Service) -> None:
    notebook = json.loads((ROOT / "examples/first_look.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 3
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)], cwd=service.folder,
        env=environment() | {"REFERENT_URL": service.url}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "the pumpkin" in result.stdout


def test_hardly_anything_is_exempt() -> None:
    assert {block.language for block in BLOCKS} <= RUNNERS.keys() | SHOWN
    exempt = [block for block in BLOCKS if not block.is_run]
    assert all(any(block.text.startswith(start) for start in UNTESTED) for block in exempt), exempt
    assert {block.language for block in BLOCKS if block.is_run} >= RUNNERS.keys()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    missing = {target for target in targets if not (ROOT / page).parent.joinpath(target).exists()}
    assert not missing
