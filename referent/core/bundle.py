"""A published version of a model: its spec, its files and their hashes.

A bundle is `model_repository/NAME/<version>/`: bundle.json and tokenizer.json. Its digest, the sha256 of bundle.json,
covers every file of the version through the hashes that it lists.

    python -m referent.core.bundle REPOSITORY NAME [--digest sha256:...]

checks the files of the latest version; with --digest, also that it is this very bundle.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec

BUNDLE_FILE, TOKENIZER_FILE, CONFIG_FILE = "bundle.json", "tokenizer.json", "config.pbtxt"
SERVED_VERSION = re.compile(r"version_policy\s*\{\s*specific\s*\{\s*versions:\s*(\d+)")
MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class BundleError(RuntimeError):
    """A bundle is missing, malformed, or its files are not the ones that it lists."""


class FileEntry(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: int


class Bundle(ModelSpec):
    """A published version of a model. `files` are relative to the model repository."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=MODEL_NAME)]
    version: Annotated[str, Field(pattern="^[1-9][0-9]*$")]
    parts: dict[str, int] = Field(description="Triton model of each step -> its version")
    has_scores: bool
    dtype: Literal["fp32", "fp16"] = Field(description="of the vision encoder and the language model")
    minimum_onnxruntime: str
    files: dict[str, FileEntry]


def latest_version(repository: Path, name: str) -> str:
    """The highest version that has been published under a name. Raises `BundleError`."""
    versions = [
        int(p.name) for p in (repository / name).glob("[1-9]*") if p.name.isdigit() and (p / BUNDLE_FILE).exists()
    ]
    if not versions:
        raise BundleError(f"no version of {name!r} in {repository}: export one with python -m export")
    return str(max(versions))


def bundle_names(repository: Path) -> list[str]:
    """Names of all models (ensembles) that have a published version, sorted."""
    return sorted({path.parents[1].name for path in repository.glob(f"*/*/{BUNDLE_FILE}")})


def load_bundle(repository: Path, name: str, version: str | None = None) -> tuple[Bundle, str]:
    """Read one version (default: the latest); returns it with its digest, "sha256:...". Raises `BundleError`."""
    if not re.match(MODEL_NAME, name):
        raise BundleError(f"{name!r} is no model name: it must match {MODEL_NAME}")
    file = repository / name / (version or latest_version(repository, name)) / BUNDLE_FILE
    try:
        content = file.read_bytes()
        return Bundle.model_validate_json(content), "sha256:" + hashlib.sha256(content).hexdigest()
    except FileNotFoundError as error:
        raise BundleError(f"{file} is missing: export the model again") from error
    except ValidationError as error:
        raise BundleError(f"{file} is not a bundle of this release: {error}") from error


def load_encoder(repository: Path, bundle: Bundle) -> PromptEncoder:
    """The prompt encoder with the bundle's own tokenizer, checked against its hash. Raises `BundleError`."""
    relative = f"{bundle.name}/{bundle.version}/{TOKENIZER_FILE}"
    if relative not in bundle.files:
        raise BundleError(
            f"the bundle of {bundle.name} version {bundle.version} lists no {TOKENIZER_FILE}: publish it again"
        )
    _verify_file(repository, relative, bundle.files[relative])
    return PromptEncoder(bundle.prompt, repository / relative, bundle.image_tokens)


def served_version(repository: Path, name: str) -> str:
    """The version that Triton loads, as NAME/config.pbtxt says. Raises `BundleError`."""
    file = repository / name / CONFIG_FILE
    found = SERVED_VERSION.search(file.read_text()) if file.is_file() else None
    if not found:
        raise BundleError(f"{file} names no version: publish one with python -m export")
    return found[1]


def verify_files(repository: Path, name: str, version: str | None = None) -> tuple[Bundle, str]:
    """Load a bundle and check every file that it lists. Raises `BundleError` naming the first bad one."""
    bundle, digest = load_bundle(repository, name, version)
    for relative, entry in bundle.files.items():
        _verify_file(repository, relative, entry)
    return bundle, digest


def _verify_file(repository: Path, relative: str, entry: FileEntry) -> None:
    file = repository / relative
    if not file.is_file():
        raise BundleError(f"{relative} is missing from {repository}: publish its version again")
    if (actual := file_entry(file)) != entry:
        raise BundleError(f"{relative} is not the file that was published: {actual} instead of {entry}")


def file_entry(file: Path) -> FileEntry:
    """Hash and size of a file."""
    with file.open("rb") as stream:
        return FileEntry(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), bytes=file.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m referent.core.bundle", description="Checks a published model's files."
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("name", help="of the model")
    parser.add_argument("--digest", default="", help="that its bundle must have; where empty, any will do")
    args = parser.parse_args()
    try:
        bundle, digest = verify_files(args.repository, args.name, served_version(args.repository, args.name))
    except BundleError as error:
        sys.exit(str(error))
    if args.digest not in ("", digest):
        sys.exit(f"{bundle.name} version {bundle.version} has the digest {digest}, not {args.digest}: publish that one")
    print(f"{bundle.name} version {bundle.version}, {digest}: {len(bundle.files)} files are as published")


if __name__ == "__main__":
    main()
