"""`referent doctor`: does this machine have what Referent needs?

Each check is one row: what was found, and what to do about it.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from referent.commands.installation import install_command
from referent.core.bundle import BundleError, bundle_names, verify_files

OLDEST_PYTHON = (3, 11)
EXTRAS = {
    "gateway": "serving HTTP",
    "local": "Triton without docker",
    "evaluate": "evaluating",
    "train": "training",
    "export": "exporting",
    "demo": "the demo",
}
GIB = 2**30
FREE_DISK = 2 * GIB
SHARED_MEMORY = 256 * 2**20  # Triton's Python backend passes tensors through it; docker's default is 64 MiB


def doctor(
    model_repository: Annotated[Path, typer.Option(help="Folder of the models to serve.")] = Path("model_repository"),
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Triton's gRPC port, if it is opened.")] = 0,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics.")] = 9090,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check whether this machine has what serving, training and exporting need; exit 1 if something won't work."""
    ports = {"--port": port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
    checks = list(examine(model_repository, ports))
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        table = Table("", "", "found", "what to do")
        for check in checks:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.status]
            cells = (check.subject, check.found, check.remedy)
            table.add_row(f"[{colour}]{check.status}", *map(escape, cells))
        Console().print(table)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


class Check(NamedTuple):
    """One finding. `fail`: something won't work; `warn`: something optional is missing."""

    status: Literal["ok", "warn", "fail"]
    subject: str
    found: str
    remedy: str = ""


def examine(repository: Path, ports: dict[str, int]) -> Iterator[Check]:
    """All checks of this machine, for serving the models of `repository` on these ports."""
    yield _python()
    yield from _packages()
    yield _processors()
    yield _graphics()
    need = 0
    for check, size in _models(repository):
        need += size
        yield check
    yield _memory(need)
    yield _room("disk", Path.cwd(), FREE_DISK, "make room: checkpoints and exports are as large as their weights")
    if Path("/dev/shm").is_dir():
        yield _room("/dev/shm", Path("/dev/shm"), SHARED_MEMORY, "enlarge it (docker: shm_size; Kubernetes: emptyDir)")
    for name, port in ports.items():
        yield _port(name, port)


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("fail", "Python", found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or later")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Check("warn", "Python", found, "the local Triton runs on x86-64 Linux only; use the containers")
    if sys.version_info >= (3, 14):
        return Check("warn", "Python", found, "the local Triton needs Python 3.11, 3.12 or 3.13")
    return Check("ok", "Python", found)


def _packages() -> Iterator[Check]:
    """Compares the installed versions with the requirements in the project's metadata, for each extra."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("referent-grounding") or []]
    yield _versions("packages", [r for r in requirements if r.marker is None], install_command(), "fail")
    for extra, purpose in EXTRAS.items():
        asked = [r for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        yield _versions(f"packages for {purpose}", asked, install_command(extra), "warn")


def _versions(subject: str, asked: list[Requirement], remedy: str, severity: Literal["warn", "fail"]) -> Check:
    missing, old, fine = [], [], []
    for requirement in asked:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        entry = f"{requirement.name} {version}"
        if requirement.specifier.contains(version, prereleases=True):
            fine.append(entry)
        else:
            old.append(f"{entry}, not {requirement.specifier}")
    if old:  # a wrong version is worse than a missing package
        return Check("fail", subject, "; ".join(old), remedy)
    if missing:
        return Check(severity, subject, f"not installed: {', '.join(missing)}", remedy)
    return Check("ok", subject, ", ".join(fine))


def _processors() -> Check:
    return Check("ok", "CPU", f"{len(os.sched_getaffinity(0))} cores")


def _graphics() -> Check:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return Check(
            "warn",
            "GPU",
            "none",
            "small models run on the CPU; for LLaVA-1.5-7B take a GPU, or export with --weights int4",
        )
    return Check("ok", "GPU", "; ".join(found.splitlines()))


def _models(repository: Path) -> Iterator[tuple[Check, int]]:
    """Each model with the size of its files in bytes."""
    names = bundle_names(repository)
    if not names:
        remedy = "export one: python -m export CHECKPOINT --name NAME"
        yield Check("warn", "models", f"none in {repository}", remedy), 0
    for name in names:
        try:
            bundle, digest = verify_files(repository, name)
        except BundleError as error:
            yield Check("fail", f"model {name}", str(error), "publish it again"), 0
        else:
            size = sum(entry.bytes for entry in bundle.files.values())
            found = (
                f"version {bundle.version}, {bundle.dtype}, {size / 2**20:.0f} MiB, {digest[:19]}, files as published"
            )
            yield Check("ok", f"model {name}", found), size


def _memory(weights: int) -> Check:
    """Memory for two versions of each model, since both are loaded while one replaces the other, and about 1 GiB for
    the processes."""
    free, need = _available_memory(), 2 * weights + GIB
    found = f"{free / GIB:.1f} GiB free; serving these models needs about {need / GIB:.1f}"
    return Check("ok", "memory", found) if free >= need else Check("fail", "memory", found, "free some, or serve fewer")


def _available_memory() -> int:
    """Bytes available on this machine, or to this container if it has a limit (cgroup v2)."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return available


def _room(subject: str, folder: Path, need: int, remedy: str) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free"
    return Check("ok", subject, found) if free >= need else Check("fail", subject, found, remedy)


def _port(name: str, port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(
                "fail", f"port {port}", f"{name}: {error.strerror}", f"stop what uses it, or choose another {name}"
            )
    return Check("ok", f"port {port}", f"{name}: free")
