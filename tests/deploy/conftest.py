"""Validation of what deploys Referent, by the real tools; `make deploy-check` installs them and runs this folder."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")


def tool(name: str) -> str:
    """Where a program is; its absence is a failure, never a reason to skip."""
    found = shutil.which(name)
    assert found, f"{name} is not on PATH: run this by make deploy-check, which installs it"
    return found


def run(*command: str | Path, **options: object) -> str:
    """What a program prints; fails with all of it where the program does."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}"
    return done.stdout


def kustomizers() -> dict[str, str]:
    """Programs by name: Debian's kubectl 1.20, which make deploy-check brings where apt has it; the machine's own."""
    names = ("kubectl-1.20", "kubectl")
    return {name: path for name in names if (path := shutil.which(name))}


def pytest_report_header() -> str:
    return f"Kustomize of: {', '.join(kustomizers()) or 'nothing; kubectl is needed'}"


@pytest.fixture(scope="session", autouse=True)
def _kustomize() -> None:
    tool("kubectl")
