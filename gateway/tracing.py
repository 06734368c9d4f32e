"""Traces: a span for each request, sent to an OpenTelemetry collector and passed on to Triton; `trace` enables them."""

from typing import TYPE_CHECKING

from fastapi import FastAPI

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

try:
    from opentelemetry import propagate
except ModuleNotFoundError:  # it comes with the extra `tracing`
    propagate = None  # type: ignore[assignment]


EXPORT_TIMEOUT_S = 5


def trace(app: FastAPI, endpoint: str) -> "TracerProvider":
    """Sends the spans of the application's requests to the collector; shut the result down at the end.

    Raises RuntimeError naming what to install.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise RuntimeError(f"REFERENT_OTLP_ENDPOINT needs: pip install -e '.[tracing]' ({error})") from error
    provider = TracerProvider(resource=Resource({SERVICE_NAME: "referent-gateway"}))
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, excluded_urls="livez,readyz,healthz,health", exclude_spans=["receive", "send"]
    )
    return provider


def context() -> dict[str, str]:
    """The current span as gRPC metadata (traceparent); empty if there is none."""
    carrier: dict[str, str] = {}
    if propagate is not None:
        propagate.inject(carrier)
    return carrier
