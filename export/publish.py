"""Publish a version into a model repository: parts first, the ensemble that pins them last, each by one rename.

Who reads the repository meanwhile sees the old version or the new one, never half of one. Nothing is deleted: an older
version may be the one that is served. NAME/<version>/config.pbtxt is what NAME/config.pbtxt was while that version was
the newest; copying it there brings the version back.
"""

import os
import shutil
import tempfile
from pathlib import Path

from export.config import ensemble_config, part_config
from referent.core.bundle import BUNDLE_FILE, CONFIG_FILE, TOKENIZER_FILE, Bundle, file_entry, load_bundle
from referent.core.contract import part_name
from referent.core.spec import ModelSpec
from referent.kinds import kind_of

MINIMUM_ONNXRUNTIME = "1.27.0"  # older CUDA providers compute opset 23's fp16 norms wrongly


def publish(
    repository: Path,
    name: str,
    spec: ModelSpec,
    parts: dict[str, Path],
    tokenizer_file: Path,
    *,
    dtype: str,
    has_scores: bool,
    sizes: dict[str, int],
    max_batch_size: int,
) -> tuple[Bundle, str]:
    """Move the directories of `parts` (by their step's suffix; each holds model.onnx and its data) in as the next
    version of `name`. `sizes` are letters of tensors' shapes that the spec does not settle.

    Returns the bundle and its digest. Raises `referent.core.bundle.BundleError` for a kind that is not served.
    """
    kind = kind_of(spec)
    repository.mkdir(parents=True, exist_ok=True)
    names = {step.suffix: part_name(name, step) for step in kind.steps}
    version = 1 + max((v for model in (name, *names.values()) for v in _versions(repository / model)), default=0)
    files = {
        f"{names[suffix]}/{version}/{file.name}": file_entry(file)
        for suffix, directory in parts.items()
        for file in sorted(directory.iterdir())
    }
    files[f"{name}/{version}/{TOKENIZER_FILE}"] = file_entry(tokenizer_file)
    bundle = Bundle(
        **{field: getattr(spec, field) for field in ModelSpec.model_fields}, name=name, version=str(version),
        parts=dict.fromkeys(names.values(), version), dtype=dtype, has_scores=has_scores,
        minimum_onnxruntime=MINIMUM_ONNXRUNTIME, files=files,
    )  # fmt: skip
    sizes = kind.sizes(spec) | sizes

    with tempfile.TemporaryDirectory(prefix=".publish-", dir=repository) as staging:  # same file system: rename works
        for step in kind.steps:
            staged = Path(staging) / step.suffix
            shutil.copytree(parts[step.suffix], staged)
            _place(staged, repository / names[step.suffix] / str(version))
            _write(repository / names[step.suffix] / CONFIG_FILE, part_config(bundle, step, sizes, max_batch_size))
        staged = Path(staging) / name / str(version)
        staged.mkdir(parents=True)
        shutil.copyfile(tokenizer_file, staged / TOKENIZER_FILE)
        (staged / BUNDLE_FILE).write_text(bundle.model_dump_json(indent=2) + "\n")
        _, digest = load_bundle(Path(staging), name, str(version))
        config = ensemble_config(bundle, digest, sizes, max_batch_size)
        (staged / CONFIG_FILE).write_text(config)
        _place(staged, repository / name / str(version))
    _write(repository / name / CONFIG_FILE, config)
    return bundle, digest


def _versions(model: Path) -> list[int]:
    return [int(path.name) for path in model.glob("[0-9]*") if path.name.isdigit()]


def _place(staged: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    staged.chmod(0o755)
    os.rename(staged, target)


def _write(file: Path, content: str) -> None:
    temporary = file.with_suffix(".new")
    temporary.write_text(content)
    os.replace(temporary, file)
