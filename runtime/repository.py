"""What the model repository says is served: ensembles, their parts and the files' versions."""

from functools import lru_cache
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"


def read_config(model_repository: Path, name: str, version: str = "") -> ModelConfig:
    """The parsed NAME/config.pbtxt, or NAME/<version>/config.pbtxt. Raises OSError or text_format.ParseError."""
    config = ModelConfig()
    config.CopyFrom(_parsed((model_repository / name / version / CONFIG).read_text()))
    config.name = name  # a file may leave it to its folder
    return config


@lru_cache
def _parsed(text: str) -> ModelConfig:
    """Kept, since the parser is Python: the files of one model take milliseconds, at every look at the repository."""
    config: ModelConfig = text_format.Parse(text, ModelConfig())
    return config


def releases(model_repository: Path, name: str) -> list[ModelConfig]:
    """What can be served of an ensemble, newest first: what was published last, then what its older versions hold."""
    published = read_config(model_repository, name)
    versions = [file.parent.name for file in model_repository.glob(f"{name}/*/{CONFIG}")]
    older = [read_config(model_repository, name, version) for version in versions]
    older = [config for config in older if version_of(config) < version_of(published)]
    return [published, *sorted(older, key=version_of, reverse=True)]


def version_of(ensemble: ModelConfig) -> int:
    """The one version that an ensemble's config names."""
    [version] = ensemble.version_policy.specific.versions
    return int(version)


def parts(ensemble: ModelConfig) -> dict[str, int]:
    """The models an ensemble runs, in the order of its steps, with their versions; empty for any other model."""
    return {step.model_name: step.model_version for step in ensemble.ensemble_scheduling.step}


def find_ensembles(model_repository: Path) -> list[str]:
    """Names of the ensembles in the repository, sorted."""
    names = sorted(path.parent.name for path in model_repository.glob(f"*/{CONFIG}"))
    return [name for name in names if parts(read_config(model_repository, name))]
