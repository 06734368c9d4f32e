"""A published version of a model: its spec, its files and their hashes.

A bundle is `model_repository/NAME/<version>/`: bundle.json and tokenizer.json. Its digest, the sha256 of bundle.json,
covers every file of the version through the hashes that it lists.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from referent.core.files import read_small
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.core.text_files import fault_of

BUNDLE_FILE, TOKENIZER_FILE, CONFIG_FILE = "bundle.json", "tokenizer.json", "config.pbtxt"
MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class BundleError(RuntimeError):
    """A bundle is missing or malformed, or its files differ from those that it lists."""


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
    weights: Literal["int8", "int4", "fp16"] | None = Field(
        default=None,
        description="int8, int4: what the weights of matrix products are rounded to; fp16: how all weights are stored; "
        "None: they have the dtype",
    )
    minimum_onnxruntime: str
    files: dict[str, FileEntry]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def computed_bytes(self) -> int:
        """Size of all files if rounded weights took two bytes each; the memory of a pass is estimated from it."""
        return self.size_bytes * {"int8": 2, "int4": 4}.get(self.weights or "", 1)


def version_numbers(model: Path) -> list[int]:
    """The numbers of a model's version folders, newest first. Triton's own have at most nine digits here."""
    names = [path.name for path in model.glob("[1-9]*")]
    return sorted((int(name) for name in names if re.fullmatch("[1-9][0-9]{0,8}", name)), reverse=True)


def latest_version(repository: Path, name: str) -> str:
    """The highest version that has been published under a name. Raises `BundleError`."""
    for number in version_numbers(repository / name):
        if os.path.exists(repository / name / str(number) / BUNDLE_FILE):  # not where it can't be looked up
            return str(number)
    raise BundleError(f"no version of {name!r} in {repository}: export one with python -m export")


def bundle_names(repository: Path) -> list[str]:
    """Names of all models (ensembles) that have a published version, sorted."""
    names = {path.parents[1].name for path in repository.glob(f"*/*/{BUNDLE_FILE}")}
    return sorted(name for name in names if re.match(MODEL_NAME, name))


def load_bundle(repository: Path, name: str, version: str | None = None) -> tuple[Bundle, str]:
    """Read one version (default: the latest); returns it with its digest, "sha256:...". Raises `BundleError`."""
    if not re.match(MODEL_NAME, name):
        raise BundleError(f"{name!r} is not a model name: it must match {MODEL_NAME}")
    file = repository / name / (version or latest_version(repository, name)) / BUNDLE_FILE
    try:
        content = read_small(file)
        return Bundle.model_validate_json(content), digest_of(content)
    except FileNotFoundError as error:
        raise BundleError(f"{file} is missing: export the model again") from error
    except OSError as error:
        raise BundleError(f"{file} can't be read ({error}): export the model again") from error
    except ValidationError as error:
        raise BundleError(
            f"{file} is not a bundle of this release ({fault_of(error)}): export the model again"
        ) from error


def digest_of(content: bytes) -> str:
    """A bundle's digest, "sha256:...", from the content of its bundle.json."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def load_encoder(repository: Path, bundle: Bundle) -> PromptEncoder:
    """The prompt encoder with the bundle's own tokenizer, checked against its hash. Raises `BundleError`."""
    relative = f"{bundle.name}/{bundle.version}/{TOKENIZER_FILE}"
    if relative not in bundle.files:
        raise BundleError(
            f"the bundle of {bundle.name} version {bundle.version} lists no {TOKENIZER_FILE}: publish it again"
        )
    _verify_file(repository, relative, bundle.files[relative])
    try:
        return PromptEncoder(bundle.prompt, repository / relative, bundle.image_tokens)
    except Exception as error:  # all that tokenizers raises
        raise BundleError(f"{relative} is not a tokenizer of this model: {error}") from error


def verify_files(repository: Path, name: str, version: str | None = None) -> tuple[Bundle, str]:
    """Load a bundle and check every file that it lists. Raises `BundleError` naming the first bad one."""
    bundle, digest = load_bundle(repository, name, version)
    for relative, entry in bundle.files.items():
        _verify_file(repository, relative, entry)
    return bundle, digest


def _verify_file(repository: Path, relative: str, entry: FileEntry) -> None:
    file = repository / relative
    try:
        if not file.is_file():
            raise BundleError(f"{relative} is missing from {repository}: publish its version again")
        size = file.stat().st_size
        if size != entry.bytes:  # first: a file may be so large that reading it takes hours
            raise BundleError(
                f"{relative} is not the file that was published: {size} bytes instead of {entry.bytes}: publish again"
            )
        actual = file_entry(file)
    except OSError as error:
        raise BundleError(f"{relative} can't be read from {repository}: {error}") from error
    if actual != entry:
        raise BundleError(
            f"{relative} is not the file that was published: sha256 {actual.sha256} instead of {entry.sha256}: "
            "publish again"
        )


def file_entry(file: Path) -> FileEntry:
    """Hash and size of a file."""
    with file.open("rb") as stream:
        return FileEntry(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), bytes=file.stat().st_size)
