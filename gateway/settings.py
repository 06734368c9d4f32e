"""The gateway's settings: environment variables with the prefix REFERENT_, read once at start."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "REFERENT_"
OTHERS = {"REFERENT_TRITON_DIR", "REFERENT_TEST_DATA"}  # same prefix, read by runtime/ and by tests


class Settings(BaseSettings):
    """Each field is REFERENT_<FIELD> in the environment; a variable that nothing reads is an error, not a surprise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on, for metrics too")
    port: int = Field(default=8000, ge=0, le=65535, description="HTTP; 0 picks a free one")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Prometheus metrics; 0: none")
    triton_url: str = Field(default="127.0.0.1:8001", description="Triton's gRPC address")
    model_repository: Path = Field(default=Path("model_repository"), description="the repository that Triton serves")
    default_model: str = Field(default="mini", description="model of requests that name none; a single model always is")
    max_image_bytes: int = Field(default=20 * 2**20, gt=0, description="of an encoded image")
    max_pixels: int = Field(default=50_000_000, gt=0, description="of an image, checked before it is decoded")
    max_expressions: int = Field(default=32, gt=0, description="of a request")
    deadline_s: float = Field(default=10, gt=0, description="for all stages of a request together")
    decode_threads: int = Field(default=2, gt=0, description="threads that decode and resize images")
    readiness_interval_s: float = Field(default=5, gt=0, description="between golden inferences of each model")

    @property
    def max_body_bytes(self) -> int:
        """The largest image in base64, and room for the expressions."""
        return self.max_image_bytes * 4 // 3 + 2**20

    @model_validator(mode="after")
    def _know_all_variables(self) -> Self:
        known = {f"{PREFIX}{field.upper()}" for field in type(self).model_fields} | OTHERS
        if unknown := {name for name in map(str.upper, os.environ) if name.startswith(PREFIX)} - known:
            raise ValueError(f"unknown variables {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        return self
