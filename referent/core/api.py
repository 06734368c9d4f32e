"""The service's answers and problems: the gateway writes them, the client reads them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from referent.core.answers import Answer, Gives

PROBLEM_JSON = "application/problem+json"  # the content type of a `Problem`
TIMEOUT_HEADER = "X-Request-Timeout"  # seconds that the caller allows for a request
_REFERENT: JsonDict = {
    "expression": "the queen",
    "box_xyxy": [12.1, 80.4, 140.9, 260.0],
    "box_cxcywh_normalized": [0.2024, 0.3377, 0.3407, 0.3563],
    "point_xy": None,
    "score": 0.91,
    "present": True,
}
EXAMPLE: JsonDict = {
    "model": "mini",
    "version": "1",
    "digest": "sha256:9f2c…",
    "image": {"width": 378, "height": 504},
    "results": [{**_REFERENT, "referents": [_REFERENT]}],
    "timings_ms": {
        "queue": 0.1,
        "decode": 3.1,
        "preprocess": 1.9,
        "inference": 41.0,
        "postprocess": 0.1,
        "total": 46.1,
    },
}


class ImageSize(BaseModel):
    """Size of the image as shown, EXIF orientation applied; pixels."""

    width: int
    height: int


class Timings(BaseModel):
    """Where the time went, milliseconds."""

    fetch: float | None = Field(
        default=None, description="getting an image by URL; otherwise absent", exclude_if=lambda ms: ms is None
    )
    queue: float = Field(description="until a thread of the gateway was free")
    decode: float
    preprocess: float
    inference: float = Field(description="transport, Triton's queues and the model")
    prefill: float | None = Field(
        default=None,
        description="part of inference: reading image and words; absent unless the model writes its answers",
        exclude_if=lambda ms: ms is None,
    )
    generation: float | None = Field(
        default=None,
        description="part of inference: writing the answers; absent unless the model writes them",
        exclude_if=lambda ms: ms is None,
    )
    postprocess: float
    total: float


class GroundResponse(BaseModel):
    """Where the referents are: a result for each expression, in order."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: str
    version: str
    digest: str = Field(description="sha256 of the bundle that answered: weights, tokenizer and preprocessing")
    image: ImageSize
    results: list[Answer]
    timings_ms: Timings


class Problem(BaseModel):
    """An error, as RFC 9457 defines it."""

    type: str = Field(examples=["urn:referent:problem:unknown-model"])
    title: str = Field(examples=["No such model"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no model 'maxi'; served are: mini"])
    instance: str = Field(description="path of the request", examples=["/v1/ground"])
    request_id: str | None
    retryable: bool = Field(description="whether the same request may succeed later")
    stage: str | None = Field(
        description="where it arose: request, body, fetch, queue, decode, preprocess, inference, postprocess or draw",
        examples=["request"],
    )


class GroundBatchResult(BaseModel):
    """The result of one image: its answer, or its problem."""

    status: int = Field(description="HTTP status that the image would have got alone", examples=[200])
    answer: GroundResponse | None = Field(default=None, exclude_if=lambda answer: answer is None)
    problem: Problem | None = Field(default=None, exclude_if=lambda problem: problem is None)


class GroundBatchResponse(BaseModel):
    """A result for each image, in order. The response has status 200 if the request itself was valid."""

    results: list[GroundBatchResult]


class ServedModel(BaseModel):
    """A version being served."""

    name: str
    version: str
    digest: str
    kind: str = Field(description="how it answers", examples=["head"])
    gives: Gives = Field(description="what a referent has")
    several: bool = Field(description="whether an expression can have several referents")
    heatmaps: bool = Field(description="whether it can say where it looked")
    knows: str | None = Field(description="what it knows, in words for people")
    default: bool
    ready: bool = Field(description="whether its latest golden inference passed")
    present_threshold: float | None = Field(
        description="lowest score of an object that is there; null for models trained without scores"
    )
    evaluation: dict[str, Any] = Field(description="figures on held-out data, by set")


class ServedModels(BaseModel):
    models: list[ServedModel]


class Limits(BaseModel):
    """What a request may hold; more is refused with a problem that names the limit."""

    body_bytes: int
    image_bytes: int = Field(description="of one encoded image")
    image_pixels: int = Field(description="of one image")
    images: int
    expressions: int = Field(description="of one image")
    expression_characters: int
    deadline_s: float


class Metadata(BaseModel):
    """What this service is."""

    name: str
    version: str
    models: list[ServedModel]
    formats: list[str] = Field(description="media types of images")
    image_urls: str = Field(description="whether images may be given by URL: off, allow-list or global")
    limits: Limits
