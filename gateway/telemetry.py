"""What operators see: metrics, and logs in JSON lines; never an image or an expression."""

import logging
import sys

import structlog
from asgi_correlation_id import correlation_id
from prometheus_client import Counter, Gauge, Histogram
from structlog.typing import EventDict, WrappedLogger

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
MEGAPIXELS = (0.1, 0.3, 1, 2, 4, 8, 12, 24, 50)
REQUESTS = Counter("referent_requests_total", "Requests answered", ["route", "code"])
REQUEST_SECONDS = Histogram("referent_request_duration_seconds", "Time to answer", ["route"], buckets=SECONDS)
STAGE_SECONDS = Histogram("referent_stage_duration_seconds", "Time in a stage", ["stage"], buckets=SECONDS)
INFLIGHT = Gauge("referent_inflight_requests", "Requests being answered")
INFLIGHT_LIMIT = Gauge("referent_inflight_requests_limit", "Requests being answered beyond which more are refused")
INFLIGHT_BYTES = Gauge("referent_inflight_bytes", "Bytes of requests being answered, fetched images among them")
INFLIGHT_BYTES_LIMIT = Gauge("referent_inflight_bytes_limit", "Bytes beyond which more are refused")
REJECTIONS = Counter("referent_rejections_total", "Requests answered with a problem", ["reason"])
CANCELLED = Counter("referent_cancelled_total", "Requests whose client left before the answer")
IMAGE_PIXELS = Histogram("referent_image_pixels", "Pixels of an image", buckets=[mp * 1e6 for mp in MEGAPIXELS])
EXPRESSIONS = Histogram("referent_expressions_per_request", "Expressions of a request", buckets=(1, 2, 4, 8, 16, 32))
SHADOW_REQUESTS = Counter("referent_shadow_requests_total", "Requests in the shadow model's share", ["outcome"])
SHADOW_IOU = Histogram(
    "referent_shadow_iou", "Agreement of served and shadow model on an expression", buckets=[i / 10 for i in range(10)]
)
MODEL_INFO = Gauge("referent_model_info", "1 for each version being served", ["model", "version", "digest"])


def configure_logging() -> None:
    """Sends everything that is logged here and in libraries to stderr, as JSON lines; as plain text on a terminal."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
        _add_request_id,
    ]
    render: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    if sys.stderr.isatty():
        render = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        [*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler()
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, *render])
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for chatty in ("httpx", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _add_request_id(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if request_id := correlation_id.get():
        event["request_id"] = request_id
    return event
