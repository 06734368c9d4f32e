"""What the model repository says is served: ensembles, their parts and the files' versions."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


def read_config(model_repository: Path, name: str) -> ModelConfig:
    """The parsed NAME/config.pbtxt. Raises OSError or text_format.ParseError."""
    return text_format.Parse((model_repository / name / "config.pbtxt").read_text(), ModelConfig())


def parts(ensemble: ModelConfig) -> list[str]:
    """Names of the models an ensemble runs, in the order of its steps; empty for any other model."""
    return list(dict.fromkeys(step.model_name for step in ensemble.ensemble_scheduling.step))


def find_ensembles(model_repository: Path) -> list[str]:
    """Names of the ensembles in the repository, sorted."""
    names = sorted(path.parent.name for path in model_repository.glob("*/config.pbtxt"))
    return [name for name in names if parts(read_config(model_repository, name))]
