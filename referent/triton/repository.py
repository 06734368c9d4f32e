"""Published versions of a model, and private repositories from which Triton serves them.

A published version is complete by itself: its folders `NAME/<version>` and `NAME_part/<version>` hold all its files,
the parts' config.pbtxt too. `NAME/config.pbtxt` names the version that a plain `tritonserver --model-repository`
serves; whoever starts Triton to serve one digest makes a repository of its own:

    python -m referent.triton.repository MODELS NAME [--digest sha256:...] --device cpu|gpu --to PRIVATE

checks every file of the version and makes the link PRIVATE point to a new folder of configs and links to the version's
folders. Versions published later don't change it. Exits with 1 and the reason if the version can't be served.
"""

import argparse
import fcntl
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelVersionPolicy

from referent.core.bundle import (
    BUNDLE_FILE,
    CONFIG_FILE,
    MODEL_NAME,
    Bundle,
    BundleError,
    digest_of,
    load_bundle,
    verify_files,
    version_numbers,
)
from referent.core.contract import DIGEST_PARAMETER
from referent.core.files import atomic, locked, read_small, told
from referent.kinds import load_processor
from referent.triton.protocol import TritonError, check_config

Device = Literal["cpu", "gpu"]
ServingMode = Literal["latency", "throughput"]
MODES: tuple[ServingMode, ...] = ("latency", "throughput")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time, and of which period
KINDS = {"cpu": ModelInstanceGroup.KIND_CPU, "gpu": ModelInstanceGroup.KIND_GPU}
# A model of 50 MB and one of 14 GB need other limits: weights come at 50 MB/s from a slow disk, and are then unpacked.
LOAD_S, LOAD_S_PER_GB = 120, 60


class PlacementError(ValueError):
    """Settings that exclude each other."""


@dataclass(frozen=True)
class Placement:
    """The device that parts run on, and how.

    `mode`, on CPUs: "latency" has one instance of each part, which has all cores; "throughput" has `instances` of one
    thread each, by default one for each core that this process may use, which answers more requests in total but takes
    longer for a single one. `gpu_memory_gb` limits the GPU memory of each part besides its weights. Raises
    `PlacementError`.
    """

    device: Device
    mode: ServingMode = "latency"
    gpu_memory_gb: float | None = None
    instances: int | None = None

    def __post_init__(self) -> None:
        if self.device == "gpu" and self.mode != "latency":
            raise PlacementError(f"mode {self.mode!r} is for CPUs: leave it out, or use --device cpu")
        if self.device == "cpu" and self.gpu_memory_gb is not None:
            raise PlacementError("a limit of GPU memory is for GPUs: leave it out, or use --device gpu")
        if self.gpu_memory_gb is not None and not self.gpu_memory_gb > 0:
            raise PlacementError(f"--gpu-memory-gb is {self.gpu_memory_gb:g}: give more than 0")
        if self.instances is not None and self.mode != "throughput":
            raise PlacementError(f"mode {self.mode!r} has one instance: leave --instances out")
        if self.instances is not None and self.instances < 1:
            raise PlacementError(f"--instances is {self.instances}: give 1 or more")

    def place(self, config: ModelConfig) -> None:
        """Writes this into a part's config."""
        instances = config.instance_group or [config.instance_group.add(count=1)]
        for group in instances:
            group.kind = KINDS[self.device]
        if self.device == "cpu":  # where a batch takes as long as its requests together, only a GPU has to be warmed up
            single = [warmup for warmup in config.model_warmup if warmup.batch_size == 1]
            del config.model_warmup[:]
            config.model_warmup.extend(single)
        if self.mode == "throughput" and config.HasField("dynamic_batching"):  # others have batching of their own
            instances[0].count = self.instances or _cores()
            config.parameters["intra_op_thread_count"].string_value = "1"
        if self.gpu_memory_gb is not None:
            config.parameters["gpu_mem_limit"].string_value = str(round(self.gpu_memory_gb * 1e9))


def _cores() -> int:
    """Those that this process may use: of its affinity, and of the quota of its container."""
    count = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # there is no quota
        quota, period = CPU_QUOTA.read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


@dataclass(frozen=True)
class Release:
    """A version whose files are as published. `parts` and `ensemble` are its configs."""

    bundle: Bundle
    digest: str
    parts: dict[str, ModelConfig]
    ensemble: ModelConfig

    @property
    def load_timeout_s(self) -> float:
        """The default limit for loading, in seconds: two minutes, and one more for each GB."""
        return LOAD_S + LOAD_S_PER_GB * self.bundle.computed_bytes / 1e9


def named_digest(repository: Path, name: str) -> str:
    """The digest that NAME/config.pbtxt names. Raises `BundleError`."""
    file = repository / name / CONFIG_FILE
    digest = str(read_config(file).parameters[DIGEST_PARAMETER].string_value)
    if not digest:
        raise BundleError(f"{file} names no digest: publish the model again")
    return digest


def versions(repository: Path, name: str) -> dict[str, str]:
    """Version -> digest of everything that was published under a name and can be read, newest first."""
    return dict(_versions(repository, name))


def _versions(repository: Path, name: str) -> Iterator[tuple[str, str]]:
    for number in version_numbers(repository / name):
        with suppress(OSError):  # half copied, or another's: not a version
            yield str(number), digest_of(read_small(repository / name / str(number) / BUNDLE_FILE))


def read_release(repository: Path, name: str, digest: str = "") -> Release:
    """The version of a digest, by default of the one that NAME/config.pbtxt names; all of its files are checked.

    Raises `BundleError` that names the first fault.
    """
    if not re.match(MODEL_NAME, name):
        raise BundleError(f"{name!r} is not a model name: it must match {MODEL_NAME}")
    sought = digest or named_digest(repository, name)
    known = versions(repository, name)
    found = [version for version, each in known.items() if each == sought]
    if not found:
        unread = [str(number) for number in version_numbers(repository / name) if str(number) not in known]
        but = f" ({', '.join(unread)} can't be read)" if unread else ""
        raise BundleError(f"no version of {name!r} in {repository} has the digest {sought}{but}: publish that one")
    # the copy of a version's folder has its digest too
    own = [version for version in found if load_bundle(repository, name, version)[0].version == version]
    folder = next(iter(own or found))
    bundle, actual = verify_files(repository, name, folder)
    if (bundle.name, bundle.version, actual) != (name, folder, sought):
        raise BundleError(f"{name}/{folder}/{BUNDLE_FILE} is of {bundle.name} version {bundle.version}, {actual}")
    parts = {}
    for part, version in bundle.parts.items():
        relative = f"{part}/{version}/{CONFIG_FILE}"
        if relative not in bundle.files:
            again = f"python -m export.versions {repository} republish {name}"
            raise BundleError(f"{name} version {bundle.version} lists no {relative}, as older releases did: {again}")
        parts[part] = _named(read_config(repository / relative), part, relative)
    relative = f"{name}/{bundle.version}/{CONFIG_FILE}"
    ensemble = _named(read_config(repository / relative), name, relative)
    steps = {step.model_name: step.model_version for step in ensemble.ensemble_scheduling.step}
    if steps != bundle.parts:
        raise BundleError(f"{relative} has the steps {steps}, its bundle {bundle.parts}: publish the version again")
    try:
        check_config(bundle, sought, ensemble)
        load_processor(repository, bundle)
    except (TritonError, ValueError) as error:
        raise BundleError(f"{relative} is not of its bundle: {error}") from error
    return Release(bundle, sought, parts, ensemble)


def read_config(file: Path) -> ModelConfig:
    """A config.pbtxt. Raises `BundleError`."""
    try:
        return text_format.Parse(read_small(file).decode(), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise BundleError(f"{file} is not a config that can be read ({error}): publish the version again") from error


def _named(config: ModelConfig, name: str, relative: str) -> ModelConfig:
    if config.name not in ("", name):  # a file may leave it to its folder
        raise BundleError(f"{relative} is the config of {config.name!r}: publish the version again")
    return config


def hold(repository: Path, bundle: Bundle) -> IO[bytes]:
    """Marks the version's files as in use until the value is closed, so that `export.versions` does not remove them.
    Raises OSError."""
    file = (repository / bundle.name / bundle.version / BUNDLE_FILE).open("rb")
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def in_use(bundle_file: Path) -> bool:
    """Whether a process of this machine holds the version."""
    with bundle_file.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks: nobody can tell
            return False
    return False


def link(
    release: Release, repository: Path, private: Path, placement: Placement, tag: str = "", served_as: str = ""
) -> None:
    """Puts the release into the repository `private`: parts first, the ensemble that needs them last.

    `tag` ends the parts' names there, so that several versions can stand beside one another; the ensemble is called
    `served_as`, by default its own name.
    """
    for part, config in release.parts.items():
        version = release.bundle.parts[part]
        own = ModelConfig()
        own.CopyFrom(config)
        own.name = part + tag
        placement.place(own)
        _place(private, own, version, repository / part / str(version))
    bundle, ensemble = release.bundle, ModelConfig()
    ensemble.CopyFrom(release.ensemble)
    ensemble.name = served_as or bundle.name
    for step in ensemble.ensemble_scheduling.step:
        step.model_name += tag
    _place(private, ensemble, int(bundle.version), repository / bundle.name / bundle.version)


def only(version: int) -> ModelVersionPolicy:
    """The policy that serves only this version, although others, also refused ones, are beside it."""
    return ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=[version]))


def _place(private: Path, config: ModelConfig, version: int, files: Path) -> None:
    config.version_policy.CopyFrom(only(version))
    folder = private / config.name
    folder.mkdir(exist_ok=True)
    _replace_link(folder / str(version), files.resolve())
    with atomic(folder / CONFIG_FILE) as temporary:
        temporary.write_text(text_format.MessageToString(config))


def _replace_link(path: Path, target: Path) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)


def build(
    repository: Path,
    name: str,
    digest: str,
    private: Path,
    placement: Placement,
) -> Release:
    """Makes `private` a link to a new folder with this release alone, in one step. Raises `BundleError`, OSError."""
    release = read_release(repository, name, digest)
    private.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{private.name}~"  # not part of a model's name: beside `tiny` there may be `tiny-b`
    with locked(private.parent, fcntl.LOCK_EX):  # against another that makes the same
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=private.parent))
        folder.chmod(0o755)  # Triton may be another user
        link(release, repository, folder, placement)
        _replace_link(private, Path(folder.name))
        for old in private.parent.glob(f"{glob.escape(prefix)}*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
    return release


def add_placement(parser: argparse.ArgumentParser) -> None:
    """The options of `Placement`, but for the device."""
    parser.add_argument(
        "--mode", choices=MODES, default="latency", help="on CPUs: one instance with all cores, or one for each core"
    )
    parser.add_argument(
        "--gpu-memory-gb", type=float, metavar="GB", help="that each part may take of a GPU beside its weights"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m referent.triton.repository", description="Makes a Triton repository of one published version."
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("name", help="of the model")
    parser.add_argument(
        "--digest", default="", help="of the version; where empty, the one that NAME/config.pbtxt names"
    )
    parser.add_argument("--device", choices=tuple(KINDS), required=True, help="that the model shall run on")
    add_placement(parser)
    parser.add_argument(
        "--instances", type=int, metavar="N", help="of each part in mode throughput; default: one for each core"
    )
    parser.add_argument("--to", type=Path, required=True, help="the link to make, for --model-repository")
    args = parser.parse_args()
    try:
        placement = Placement(args.device, args.mode, args.gpu_memory_gb, args.instances)
        release = build(args.repository, args.name, args.digest, args.to, placement)
    except (BundleError, PlacementError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(told(error, args.to))
    named = f"{args.name} version {release.bundle.version}, {release.digest}"
    print(f"{named}: {len(release.bundle.files)} files are as published; {args.to} serves it on the {args.device}")


if __name__ == "__main__":
    main()
