"""The gateway's settings: environment variables with the prefix REFERENT_, read once at start."""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from limits import RateLimitItem, parse_many
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "REFERENT_"
# variables with the same prefix that compose, runtime/, tests and clients read
OTHERS = {
    "REFERENT_MODEL",
    "REFERENT_DIGEST",
    "REFERENT_TRITON_DIR",
    "REFERENT_TEST_DATA",
    "REFERENT_URL",
    "REFERENT_API_KEY",
}


def _split(text: Any) -> Any:
    return [part.strip().lower() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


Names = Annotated[frozenset[str], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Each field is REFERENT_<FIELD> in the environment; an unknown variable with the prefix is an error."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on, for metrics too")
    port: int = Field(default=8000, ge=0, le=65535, description="HTTP; 0 picks a free one")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Prometheus metrics; 0: none")
    triton_url: str = Field(
        default="127.0.0.1:8001",
        description="Triton's gRPC address: HOST:PORT, a list IP:PORT,IP:PORT, or dns:///NAME:PORT for all of a name",
    )
    triton_reconnect_s: float = Field(
        default=30, gt=0, description="seconds between new connections, which find Tritons that were added"
    )
    model_repository: Path = Field(default=Path("model_repository"), description="the repository that Triton serves")
    models: Names = Field(
        default=frozenset(), description="models to serve, separated by commas; empty: all of the repository"
    )
    default_model: str = Field(
        default="mini", description="model of requests that name none; not needed if only one is served"
    )
    web: Path = Field(default=Path("web/dist"), description="the built web page, served at /")
    max_image_bytes: int = Field(default=20 * 2**20, gt=0, description="largest image file, in bytes")
    max_pixels: int = Field(default=50_000_000, gt=0, description="largest image, in pixels; checked before decoding")
    max_images: int = Field(default=8, gt=0, description="images in a request")
    max_expressions: int = Field(default=32, gt=0, description="expressions for an image")
    image_urls: Literal["off", "allow-list", "global"] = Field(
        default="off",
        description="images by URL: off, allow-list (hosts of REFERENT_IMAGE_URL_HOSTS), or global (any public host)",
    )
    image_url_hosts: Names = Field(default=frozenset(), description="for allow-list: host names, separated by commas")
    image_url_private_hosts: Names = Field(
        default=frozenset(), description="those of the hosts that may have addresses inside the network"
    )
    image_url_ports: Annotated[frozenset[int], NoDecode, BeforeValidator(_split)] = Field(
        default=frozenset({80, 443}), description="allowed ports of images by URL, separated by commas"
    )
    deadline_s: float = Field(
        default=10,
        gt=0,
        description="seconds for a request, from its first byte; X-Request-Timeout may ask for less",
    )
    drain_grace_s: float = Field(
        default=5,
        ge=0,
        description="seconds after SIGTERM in which connections are still accepted, while /readyz answers 503",
    )
    max_inflight_requests: int = Field(
        default=64,
        gt=0,
        description="requests at a time; one that is answered in text counts once for each row; more get 429",
    )
    max_inflight_bytes: int = Field(
        default=512 * 2**20,
        gt=0,
        description="bytes of all bodies and fetched images at a time; more get 429",
    )
    rate_limit: str | None = Field(
        default=None,
        description="limit for each key, or without keys for each address, such as '10/second; 1000/hour'",
    )
    keys_file: Path | None = Field(
        default=None, description="API keys, hashed, as python -m gateway.keys makes them; read again when it changes"
    )
    open_access: bool = Field(default=False, description="serve other machines without keys")
    cors_origins: Names = Field(
        default=frozenset(), description="origins whose pages may call the API, separated by commas; '*': all"
    )
    otlp_endpoint: str | None = Field(
        default=None, description="OpenTelemetry collector for traces (OTLP over HTTP), such as http://collector:4318"
    )
    decode_threads: int = Field(default=2, gt=0, description="threads that decode and resize images")
    golden_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds for a golden inference; by default 10, and 15 more for each GB of the model",
    )
    readiness_interval_s: float = Field(default=5, gt=0, description="seconds between golden inferences of each model")
    shadow_model: str | None = Field(
        default=None, description="a second model that gets the same questions, to compare its boxes"
    )
    shadow_share: float = Field(default=0.1, gt=0, le=1, description="share of the requests that the shadow model gets")

    @property
    def triton_models(self) -> list[str] | None:
        """What Triton must serve; None: all of the repository."""
        shadow = {self.shadow_model} if self.shadow_model else set()
        return sorted(self.models | shadow) if self.models else None

    @property
    def max_body_bytes(self) -> int:
        """The largest image in base64, and room for the expressions."""
        return self.max_image_bytes * 4 // 3 + 2**20

    @property
    def rate_limits(self) -> list[RateLimitItem]:
        """`rate_limit`, parsed."""
        return parse_many(self.rate_limit) if self.rate_limit else []

    @field_validator("triton_url")
    @classmethod
    def _list_addresses(cls, url: str) -> str:
        for address in url.split(",") if "," in url else ():
            try:
                ip_address(address.rpartition(":")[0])
            except ValueError:
                raise ValueError(f"{address} in a list is not IP:PORT; for a name give dns:///NAME:PORT") from None
        return url

    @field_validator("rate_limit")
    @classmethod
    def _parse(cls, rate_limit: str | None) -> str | None:
        if rate_limit:
            parse_many(rate_limit)  # its error names the value
        return rate_limit

    @model_validator(mode="after")
    def _protect(self) -> Self:
        if not (self.keys_file or self.open_access or _is_loopback(self.host)):
            raise ValueError(
                f"others can reach {self.host} and there are no keys: set {PREFIX}KEYS_FILE (python -m gateway.keys "
                f"makes one), or {PREFIX}OPEN_ACCESS=true to serve everybody"
            )
        if self.max_inflight_bytes < self.max_body_bytes:
            raise ValueError(
                f"{PREFIX}MAX_INFLIGHT_BYTES is {self.max_inflight_bytes}, less than one body: set it to at least "
                f"{self.max_body_bytes}, or lower {PREFIX}MAX_IMAGE_BYTES"
            )
        return self

    @model_validator(mode="after")
    def _know_hosts(self) -> Self:
        if self.image_urls == "allow-list" and not self.image_url_hosts:
            raise ValueError(f"images by URL from an allow-list, and the list is empty: set {PREFIX}IMAGE_URL_HOSTS")
        return self

    @model_validator(mode="after")
    def _compare_with_another(self) -> Self:
        if self.shadow_model == self.default_model:
            raise ValueError(
                f"{PREFIX}SHADOW_MODEL and {PREFIX}DEFAULT_MODEL are both {self.shadow_model!r}: name two models"
            )
        return self

    @model_validator(mode="after")
    def _know_all_variables(self) -> Self:
        known = {f"{PREFIX}{field.upper()}" for field in type(self).model_fields} | OTHERS
        if unknown := {name for name in map(str.upper, os.environ) if name.startswith(PREFIX)} - known:
            raise ValueError(f"unknown variables {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
