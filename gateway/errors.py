"""The table that maps every error to HTTP, as an RFC 9457 problem."""

from http import HTTPStatus
from typing import NamedTuple

from asgi_correlation_id import correlation_id
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from gateway.accept import NotAcceptableError
from gateway.admission import OverloadedError, RateLimitedError
from gateway.body import BodyTooLargeError, InvalidRequestError, MalformedRequestError, MediaTypeError
from gateway.budget import DeadlineError, SlowBodyError
from gateway.keys import ForbiddenError, UnauthenticatedError
from gateway.pipeline import ExpressionCountError, NoBoxError
from gateway.registry import DrainingError, NotReadyError, UnknownModelError
from gateway.telemetry import REJECTIONS
from referent.core.api import PROBLEM_JSON, Problem
from referent.core.fetch import FetchError
from referent.core.images import ExhaustedError, ImageError, ImageFormatError, ImageTooLargeError
from referent.core.prompts import ExpressionError
from referent.core.sources import Base64Error
from referent.triton.protocol import TritonBusyError, TritonError, TritonUnavailableError


class Fault(NamedTuple):
    """How an error is presented to the caller. `detail` replaces the error's own text if callers should not see it."""

    status: int
    slug: str
    title: str
    stage: str | None = "request"
    retryable: bool = False
    detail: str | None = None

    def problem(self, detail: str, instance: str, request_id: str | None = None) -> Problem:
        """For the caller; `detail` counts where the fault has none of its own."""
        return Problem(
            type=f"urn:referent:problem:{self.slug}",
            title=self.title,
            status=self.status,
            detail=self.detail or detail,
            instance=instance,
            request_id=request_id,
            retryable=self.retryable,
            stage=self.stage,
        )


TABLE: dict[type[Exception], Fault] = {
    MalformedRequestError: Fault(400, "malformed-request", "The request can't be read"),
    Base64Error: Fault(400, "malformed-request", "The request can't be read"),
    UnauthenticatedError: Fault(401, "unauthenticated", "A key is needed"),
    ForbiddenError: Fault(403, "forbidden", "The key does not allow this"),
    UnknownModelError: Fault(404, "unknown-model", "No such model"),
    NotAcceptableError: Fault(406, "not-acceptable", "The answer is in no form that is accepted"),
    SlowBodyError: Fault(408, "slow-body", "The request took too long to arrive", None, True),
    BodyTooLargeError: Fault(413, "body-too-large", "The request is too large"),
    MediaTypeError: Fault(415, "unsupported-media-type", "Unsupported content type"),
    InvalidRequestError: Fault(422, "invalid-request", "The request has missing or wrong fields"),
    FetchError: Fault(422, "image-url", "The image can't be fetched", "fetch"),
    ImageTooLargeError: Fault(413, "image-too-large", "The image is too large", "decode"),
    ImageFormatError: Fault(415, "unsupported-image", "Not an image of a supported format", "decode"),
    ImageError: Fault(422, "damaged-image", "The image can't be decoded", "decode"),
    ExpressionError: Fault(422, "invalid-expression", "An expression can't be used", "preprocess"),
    NoBoxError: Fault(422, "no-box", "The model gave no box", "postprocess"),
    ExpressionCountError: Fault(422, "expression-count", "Too few or too many expressions"),
    OverloadedError: Fault(429, "overloaded", "The service is busy", "request", True),
    ExhaustedError: Fault(
        429, "overloaded", "The service is busy", "decode", True, "too many images are being decoded: try again soon"
    ),
    RateLimitedError: Fault(429, "rate-limited", "Too many requests", "request", True),
    TritonBusyError: Fault(
        429, "overloaded", "The service is busy", "inference", True, "the model's queue is full: try again soon"
    ),
    ClientDisconnect: Fault(499, "client-gone", "The client left", None),  # only for the log
    Exception: Fault(500, "internal-error", "The service failed", None, False, "the log has more under the request id"),
    TritonError: Fault(
        502,
        "inference-failed",
        "The inference failed",
        "inference",
        False,
        "the model gave no answer: the service's log has more under the request id",
    ),
    NotReadyError: Fault(503, "not-ready", "Not ready", "request", True),
    DrainingError: Fault(503, "draining", "The service is going down", "request", True),
    TritonUnavailableError: Fault(
        503, "inference-unavailable", "Inference is unavailable", "inference", True, "no model server: try again soon"
    ),
    DeadlineError: Fault(504, "deadline-exceeded", "The request took too long", None, True),
}

BEFORE_THE_BODY = (
    UnauthenticatedError, ForbiddenError, RateLimitedError, OverloadedError, BodyTooLargeError, SlowBodyError
)  # fmt: skip


def fault_of(error: Exception) -> Fault:
    """The table's entry for the error's nearest class; errors of the router keep their own status."""
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        return Fault(status, status.phrase.lower().replace(" ", "-"), status.phrase)
    return next(TABLE[parent] for parent in type(error).__mro__ if parent in TABLE)


def problem_of(request: Request, error: Exception) -> Problem:
    """The error as a problem. Counts it, and puts what the log should have into `scope["log"]`."""
    fault = fault_of(error)
    REJECTIONS.labels(fault.slug).inc()
    request.scope["log"] = {"problem": fault.slug}
    if fault.status >= 500:  # caused by the service, so the text has nothing of the caller's
        request.scope["log"] |= {"fault": f"{type(error).__name__}: {error}"}
    if fault.status == 500:
        request.scope["log"] |= {"exc_info": error}
    own = {name: getattr(error, name) for name in ("retryable", "stage") if hasattr(error, name)}
    path = request.scope["path"]  # request.url would fail on an invalid Host
    return fault._replace(**own).problem(str(getattr(error, "detail", error)), path, correlation_id.get())


async def problem_response(request: Request, error: Exception) -> JSONResponse:
    """The error as application/problem+json."""
    problem = problem_of(request, error)
    headers = dict(getattr(error, "headers", None) or {})
    if problem.retryable:
        headers["Retry-After"] = str(getattr(error, "retry_after_s", 1))
    if isinstance(error, BEFORE_THE_BODY):
        headers["Connection"] = "close"  # rather than read the rest of the body, which no limit covers any more
    return JSONResponse(problem.model_dump(), problem.status, headers, PROBLEM_JSON)
