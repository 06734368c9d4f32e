"""Requests and the smaller answers of the HTTP API; the answer of POST /v1/ground is `referent.api.GroundResponse`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4IScHAAK2AQUKW6YGAAAAAElFTkSuQmCC"
Box = tuple[float, float, float, float]


class Request(BaseModel):
    """Strict, so that a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid")


class ImageInput(Request):
    base64: str = Field(description="JPEG, PNG or WebP in base64, or as a data URL", examples=[PIXEL])


class GroundRequest(Request):
    """An image and what to look for in it."""

    model: str | None = Field(default=None, description="as listed by GET /v1/models; default: the default model")
    image: ImageInput
    expressions: list[str] = Field(examples=[["the queen", "the king on the left"]])


class GroundForm(Request):
    """The same as multipart/form-data; `expression` may be repeated."""

    model: str | None = None
    image: bytes = Field(description="JPEG, PNG or WebP file", json_schema_extra={"format": "binary"})
    expression: list[str] = Field(examples=[["the queen", "the king on the left"]])


class PredictRequest(Request):
    """visual-grounding-api's request."""

    image: str = Field(description="JPEG, PNG or WebP in base64, or as a data URL", examples=[PIXEL])
    text: str = Field(examples=["the queen"])
    model: str = Field(default="main", description="'main' is the default model")


class PredictResponse(BaseModel):
    """visual-grounding-api's answer."""

    bbox: Box = Field(description="centre x, centre y, width, height in 0..1 of the whole image")
    model: str
    inference_time_ms: float


class HealthResponse(BaseModel):
    """visual-grounding-api's health."""

    status: str = Field(description="'ok', or 'unavailable' with status 503")
    models_loaded: list[str]
    device: str


class ModelSummary(BaseModel):
    """visual-grounding-api's model entry; figures of the bundle's first evaluation set, null where it has none."""

    name: str
    description: str
    test_iou: float | None
    test_rmse: float | None
    test_mae: float | None


class ModelsResponse(BaseModel):
    models: list[ModelSummary]


class ServedModel(BaseModel):
    """A version being served."""

    name: str
    version: str
    digest: str
    default: bool
    ready: bool = Field(description="whether its latest golden inference passed")
    evaluation: dict[str, Any] = Field(description="figures on held-out data, by set")


class ServedModels(BaseModel):
    models: list[ServedModel]


class Status(BaseModel):
    status: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["urn:referent:problem:unknown-model"])
    title: str = Field(examples=["No such model"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no model 'maxi'; served are: mini"])
    instance: str = Field(description="the path that was asked for", examples=["/v1/ground"])
    request_id: str | None
    retryable: bool = Field(description="whether the same request may succeed later")
    stage: str | None = Field(description="request, decode, preprocess, inference or postprocess", examples=["request"])
