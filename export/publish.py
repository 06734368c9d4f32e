"""Publish a version into a model repository: all of its files are in their places before anything points at it.

    NAME_part/<version>/        model.onnx, its data, config.pbtxt
    NAME/<version>/             tokenizer.json, bundle.json (hashes of all of those), config.pbtxt (names its digest)
    NAME_part/, NAME/           config.pbtxt: the version that a plain tritonserver serves, and that a launcher follows

A version is whole from the moment NAME/<version> is there, and never changes. Nothing is deleted: an older version may
be the one that is served. `export.versions` goes back to one, and removes those that nobody needs.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.config import HEADER, ensemble_config, part_config
from referent.core.bundle import (
    BUNDLE_FILE,
    CONFIG_FILE,
    TOKENIZER_FILE,
    Bundle,
    BundleError,
    FileEntry,
    digest_of,
    file_entry,
    load_bundle,
    version_numbers,
)
from referent.core.contract import DIGEST_PARAMETER, part_name
from referent.core.files import atomic, locked
from referent.core.spec import ModelSpec
from referent.kinds import kind_of
from referent.triton.repository import only, read_config

MINIMUM_ONNXRUNTIME = "1.27.0"  # older CUDA providers compute opset 23's fp16 norms wrongly
STAGING = ".publish-"  # in the names of folders that are not yet, or no longer, in their place


def publish(
    repository: Path,
    name: str,
    spec: ModelSpec,
    parts: dict[str, Path],
    tokenizer_file: Path,
    *,
    dtype: str,
    weights: Literal["int8", "int4", "fp16"] | None = None,
    has_scores: bool,
    sizes: dict[str, int],
    max_batch_size: int,
) -> tuple[Bundle, str]:
    """Move the directories of `parts` (by their step's suffix; each holds model.onnx and its data) in as the next
    version of `name`. `sizes` are letters of tensors' shapes that the spec does not settle.

    Returns the bundle and its digest. Raises `referent.core.bundle.BundleError` for a kind that is not served.
    """
    kind = kind_of(spec)
    names = {step.suffix: part_name(name, step) for step in kind.steps}
    draft = Bundle(
        **{field: getattr(spec, field) for field in ModelSpec.model_fields}, name=name, version="1",
        parts=dict.fromkeys(names.values(), 1), dtype=dtype, weights=weights, has_scores=has_scores,
        minimum_onnxruntime=MINIMUM_ONNXRUNTIME, files={},
    )  # fmt: skip
    sizes = kind.sizes(spec) | sizes
    configs = {names[step.suffix]: part_config(draft, step, sizes, max_batch_size) for step in kind.steps}

    def ensemble(bundle: Bundle, digest: str) -> ModelConfig:
        return ensemble_config(bundle, digest, sizes, max_batch_size)

    hashed = {  # while they are where a stopped export looks for them
        f"{names[suffix]}/{file.name}": file_entry(file)
        for suffix, source in parts.items()
        for file in sorted(source.iterdir())
        if file.name != CONFIG_FILE  # of a publication that failed
    }
    with staging(repository) as folder:
        try:
            for suffix, part in names.items():
                shutil.move(parts[suffix], folder / part)
            return release(repository, folder, draft, configs, tokenizer_file, ensemble, hashed=hashed)
        except BaseException:  # they took long to make
            for suffix, part in names.items():
                if (folder / part).exists():
                    shutil.move(folder / part, parts[suffix])
            raise


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A folder in the repository's own file system, where moving a file into its place copies nothing. Before, what
    killed publishers left is removed.

    It is beside the repository: a tritonserver that starts takes every folder in it for a model. It is in the
    repository if that is a file system of its own, or if nothing can be written beside it.
    """
    is_new = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    place = parent if beside else repository
    try:
        with ExitStack() as stack:
            with exclusive(repository):  # a new folder has no lock at first
                _remove_abandoned(repository)
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_staged(repository), dir=place)))
                stack.enter_context(locked(folder, fcntl.LOCK_SH))
            yield folder
    except BaseException:
        if is_new:
            with suppress(OSError):  # somebody else published
                repository.rmdir()
        raise


def _staged(repository: Path) -> str:
    """How the names of its folders of `staging` begin."""
    return f".{repository.resolve().name}{STAGING}"


def exclusive(repository: Path) -> AbstractContextManager[bool]:
    """One publisher at a time: two would take the same number."""
    return locked(repository, fcntl.LOCK_EX)


def _remove_abandoned(repository: Path) -> None:
    """Removes folders of `staging` whose publisher was killed."""
    pattern = f"{glob.escape(_staged(repository))}*"
    for folder in (*repository.resolve().parent.glob(pattern), *repository.glob(f"*{STAGING}*")):
        with suppress(OSError), locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:  # it may be gone by now
            if alone:
                shutil.rmtree(folder, ignore_errors=True)


def release(
    repository: Path,
    staged: Path,
    draft: Bundle,
    parts: Mapping[str, ModelConfig],
    tokenizer_file: Path,
    ensemble: Callable[[Bundle, str], ModelConfig],
    known: Mapping[str, FileEntry] | None = None,
    hashed: Mapping[str, FileEntry] | None = None,
) -> tuple[Bundle, str]:
    """Publishes what is in the folders of `parts` in `staged`; `draft` lacks the version and the files. What `known`
    says of PART/FILE must be true, and what `hashed` says is taken as it is. Raises `BundleError`."""
    name = draft.name
    for part, config in parts.items():
        _write(staged / part / CONFIG_FILE, config)
    entries = {
        part: {
            file.name: (hashed or {}).get(f"{part}/{file.name}") or file_entry(file)
            for file in sorted((staged / part).iterdir())
        }
        for part in parts
    }
    own = staged / name
    own.mkdir()
    shutil.copyfile(tokenizer_file, own / TOKENIZER_FILE)
    entries[name] = {TOKENIZER_FILE: file_entry(own / TOKENIZER_FILE)}
    for relative, entry in (known or {}).items():
        part, _, file = relative.partition("/")
        if entries[part][file] != entry:
            raise BundleError(f"{relative} is not the file that was published: publish from a sound copy")
    with exclusive(repository):
        refuse_names_of_others(repository, name, parts)
        version = 1 + max((v for model in entries for v in version_numbers(repository / model)), default=0)
        files = {
            f"{model}/{version}/{file}": entry for model, listed in entries.items() for file, entry in listed.items()
        }
        changes = {"version": str(version), "parts": dict.fromkeys(parts, version), "files": files}
        bundle = draft.model_copy(update=changes)
        content = bundle.model_dump_json(indent=2) + "\n"
        (own / BUNDLE_FILE).write_text(content)
        digest = digest_of(content.encode())
        _write(own / CONFIG_FILE, ensemble(bundle, digest))
        for model in (*parts, name):
            (staged / model).chmod(0o755)
            (repository / model).mkdir(exist_ok=True)
        for model in (*parts, name):  # the ensemble's folder makes it a version: it comes last
            os.rename(staged / model, repository / model / str(version))
        point(repository, bundle)
    return bundle, digest


def refuse_names_of_others(repository: Path, name: str, parts: Iterable[str]) -> None:
    """Raises `BundleError` if the name is that of another model's part, or a part's is that of another model."""
    if any((repository / name).glob("[0-9]*/model.onnx")):
        raise BundleError(f"{name} is a part of another model in {repository}: choose another name")
    for part in parts:
        if any((repository / part).glob(f"[0-9]*/{BUNDLE_FILE}")):
            raise BundleError(f"{part}, which {name} needs for itself, is another model in {repository}: rename one")


def point(repository: Path, bundle: Bundle) -> None:
    """Has NAME/config.pbtxt name this version, which is there already."""
    for part, version in bundle.parts.items():
        config = read_config(repository / part / str(version) / CONFIG_FILE)
        config.version_policy.CopyFrom(only(version))
        _write(repository / part / CONFIG_FILE, config)
    _write(repository / bundle.name / CONFIG_FILE, read_config(repository / bundle.name / bundle.version / CONFIG_FILE))


def republish(
    source: Path,
    name: str,
    version: str,
    target: Path,
    change: Callable[[ModelConfig], object] = lambda config: None,
    **fields: object,
) -> tuple[Bundle, str]:
    """Publishes a version once more from its files, as the next one of `target`: what an older release published gets
    today's layout, and a version goes from one repository to another. Configs are taken over; `change` gets each
    part's. `fields` replace those of the bundle.

    Raises `referent.core.bundle.BundleError`.
    """
    bundle = load_bundle(source, name, version)[0].model_copy(update=fields)
    configs, known = {}, dict[str, FileEntry]()
    with staging(target) as folder:
        for part, number in bundle.parts.items():
            files = source / part / str(number)
            config_file = files / CONFIG_FILE  # older releases had one for all versions
            configs[part] = read_config(config_file if config_file.exists() else source / part / CONFIG_FILE)
            configs[part].ClearField("version_policy")
            change(configs[part])
            (folder / part).mkdir()
            for relative, entry in bundle.files.items():
                if (source / relative).parent == files and not relative.endswith(f"/{CONFIG_FILE}"):
                    file = files / Path(relative).name
                    _link_or_copy(file, folder / part / file.name)
                    known[f"{part}/{file.name}"] = entry
        tokenizer_file = source / name / version / TOKENIZER_FILE
        if listed := bundle.files.get(f"{name}/{version}/{TOKENIZER_FILE}"):
            known[f"{name}/{TOKENIZER_FILE}"] = listed
        before = read_config(source / name / version / CONFIG_FILE)

        def ensemble(bundle: Bundle, digest: str) -> ModelConfig:
            before.version_policy.CopyFrom(only(int(bundle.version)))
            before.parameters[DIGEST_PARAMETER].string_value = digest
            for step in before.ensemble_scheduling.step:
                step.model_version = bundle.parts[step.model_name]
            return before

        return release(target, folder, bundle, configs, tokenizer_file, ensemble, known)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # published files never change, so both versions can share them
    except OSError:
        shutil.copyfile(source, target)


def _write(file: Path, config: ModelConfig) -> None:
    with atomic(file) as temporary:
        temporary.write_text(HEADER + text_format.MessageToString(config))
