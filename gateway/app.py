"""Assembles the gateway: create_app(Settings())."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from gateway import legacy, tracing
from gateway.admission import Admission
from gateway.errors import problem_response
from gateway.keys import Guard, Keys
from gateway.middleware import Envelope
from gateway.openapi import add_schemas
from gateway.pipeline import Pipeline
from gateway.registry import Registry
from gateway.routes import router
from gateway.settings import Settings
from gateway.web import add_docs, add_page
from referent import __version__
from referent.core.api import TIMEOUT_HEADER
from referent.triton.aio import Triton

START_S = 20  # for the first look at the models, until which nothing is answered
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def create_app(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> FastAPI:
    """The gateway as an ASGI application; `on_ready` is called once, when all models passed their golden inference."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if provider:
                stack.push_async_callback(asyncio.to_thread, provider.shutdown)
            triton = Triton(settings.triton_url, tracing.context)
            stack.push_async_callback(triton.close)
            stack.callback(asyncio.create_task(triton.keep_reconnecting(settings.triton_reconnect_s)).cancel)
            served = settings.models, settings.shadow_model
            registry = Registry(
                settings.model_repository, triton, settings.default_model, *served, settings.golden_timeout_s
            )
            pipeline = Pipeline(settings, registry, triton)
            stack.callback(pipeline.close)
            app.state.registry, app.state.pipeline = registry, pipeline
            looking = asyncio.create_task(registry.refresh())
            stack.callback(looking.cancel)
            # models that answer at once are ready from the first request on; probes need not wait for the others
            if looking in (await asyncio.wait([looking], timeout=START_S))[0]:
                looking.result()
            stack.callback(asyncio.create_task(registry.keep_fresh(settings.readiness_interval_s, on_ready)).cancel)
            yield

    app = FastAPI(
        title="Referent",
        version=__version__,
        description="Where in an image is what these words refer to?",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would contain our scheme and path, which differ behind a proxy
        docs_url=None,  # FastAPI's pages load files from a content network
        redoc_url=None,
    )
    app.include_router(router)
    app.include_router(legacy.router)
    routes = [route for route in (*router.routes, *legacy.router.routes) if isinstance(route, APIRoute)]
    for route in routes:  # HEAD works wherever GET does, since monitors use it
        if "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    add_docs(app)
    add_page(app, settings.web)
    app.add_exception_handler(HTTPException, problem_response)
    # the last one added sees a request first
    app.add_middleware(Admission, settings=settings)
    if settings.keys_file:
        app.add_middleware(Guard, keys=Keys(settings.keys_file))
    paths = {route.path for route in routes}
    app.add_middleware(Envelope, is_draining=lambda: app.state.registry.draining, paths=paths)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-ID", TIMEOUT_HEADER, "traceparent", "tracestate"],
            expose_headers=["X-Request-ID", "Retry-After", "Server-Timing"],
        )
    app.add_middleware(CorrelationIdMiddleware, validator=lambda given: REQUEST_ID.fullmatch(given) is not None)
    provider = tracing.trace(app, settings.otlp_endpoint) if settings.otlp_endpoint else None
    add_schemas(app, with_keys=settings.keys_file is not None)
    return app
