"""Requests, and answers for visual-grounding-api's clients and probes; other answers are in `referent.core.api`."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from referent.core.boxes import Box
from referent.core.kind import MAX_INSTANCES, Options

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4IScHAAK2AQUKW6YGAAAAAElFTkSuQmCC"
MAX_URL_CHARACTERS = 2000
ModelName = Annotated[str, Field(max_length=200)]
Expressions = Annotated[list[str], FailFast(), Field(examples=[["the queen", "the king on the left"]])]


class StrictModel(BaseModel):
    """A misspelt field is an error."""

    model_config = ConfigDict(extra="forbid")


class ImageInput(StrictModel):
    """An image as base64 or as a URL."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    base64: str = Field(default="", description="JPEG, PNG, WebP or AVIF in base64, or as a data URL", examples=[PIXEL])
    url: str = Field(
        default="",
        max_length=MAX_URL_CHARACTERS,
        description="http(s) URL of the image; refused unless the service has REFERENT_IMAGE_URLS set",
        examples=["https://images.example.org/table.jpg"],
    )

    @model_validator(mode="after")
    def _have_one(self) -> Self:
        if bool(self.base64) == bool(self.url):
            raise ValueError("give base64 or url, one of them")
        return self


class AnswerOptions(StrictModel):
    """What may be asked for besides the expressions; models ignore options that don't apply to them."""

    max_instances: int | None = Field(
        default=None, ge=1, le=MAX_INSTANCES, description="limit of referents for each expression; default: the model's"
    )
    heatmap: bool = Field(default=False, description="ask where the model looked; not all models can tell")

    @property
    def options(self) -> Options:
        return Options(self.max_instances, self.heatmap)


class ImageQuery(AnswerOptions):
    """An image and what to look for in it."""

    image: ImageInput
    expressions: Expressions


class GroundRequest(ImageQuery):
    """One image; answered with `GroundResponse`."""

    model: ModelName | None = Field(default=None, description="as listed by GET /v1/models; default: the default model")


class GroundBatchRequest(StrictModel):
    """Several images, each with its own expressions; answered with `GroundBatchResponse`."""

    model: ModelName | None = Field(default=None, description="of all images; default: the default model")
    images: Annotated[list[ImageQuery], FailFast()] = Field(min_length=1)


class GroundForm(AnswerOptions):
    """One image as multipart/form-data; `expression` may be repeated."""

    model: ModelName | None = None
    image: bytes = Field(description="JPEG, PNG, WebP or AVIF file", json_schema_extra={"format": "binary"})
    expression: Expressions


class PredictRequest(StrictModel):
    """visual-grounding-api's request."""

    image: str = Field(
        min_length=1, description="JPEG, PNG, WebP or AVIF in base64, or as a data URL", examples=[PIXEL]
    )
    text: str = Field(examples=["the queen"])
    model: ModelName = Field(default="main", description="'main' is the default model")


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


class Status(BaseModel):
    status: str
