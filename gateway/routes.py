"""The HTTP API."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from gateway import schemas
from gateway.accept import preferred
from gateway.body import JSON, InvalidRequestError, Query, read_queries
from gateway.budget import Budget, DeadlineError
from gateway.errors import problem_of
from gateway.openapi import GROUND_ANSWERS, PNG, body_of, problems
from gateway.pipeline import Grounded, Pipeline
from gateway.registry import Registry
from referent import __version__
from referent.core.api import (
    GroundBatchResponse,
    GroundBatchResult,
    GroundResponse,
    Limits,
    Metadata,
    ServedModel,
    ServedModels,
)
from referent.core.images import FORMATS
from referent.core.prompts import MAX_EXPRESSION_CHARACTERS

T = TypeVar("T")

router = APIRouter()
GROUNDING_PROBLEMS = problems(400, 401, 403, 404, 406, 408, 413, 415, 422, 429, 500, 502, 503, 504)
RELOAD_PROBLEMS = problems(401, 403, 408, 413, 429, 504)
KEY_PROBLEMS = problems(401, 403)
READINESS_PROBLEMS = problems(503)


async def the_pipeline(request: Request) -> Pipeline:
    pipeline: Pipeline = request.app.state.pipeline
    return pipeline


async def the_registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


ThePipeline = Annotated[Pipeline, Depends(the_pipeline)]
TheRegistry = Annotated[Registry, Depends(the_registry)]


@router.post(
    "/v1/ground",
    response_model=GroundResponse | GroundBatchResponse,
    responses=GROUND_ANSWERS | GROUNDING_PROBLEMS,
    openapi_extra=body_of(schemas.GroundRequest, schemas.GroundBatchRequest, form=schemas.GroundForm),
)
async def ground(request: Request, pipeline: ThePipeline, registry: TheRegistry) -> Response:
    """Where in the image is what each expression refers to?

    One image, or several with a result for each. With `Accept: image/png`, the answer for one image is a PNG with the
    boxes drawn.
    """
    wants_png = preferred(request.headers.get("accept", ""), (JSON, PNG)) == PNG
    queries, model, together = await read_queries(request)
    if together:
        limit = pipeline.settings.max_images
        if len(queries) > limit:
            raise InvalidRequestError(f"the request has {len(queries)} images; send 1 to {limit}")
        registry.get(model)  # an unknown model is an error of the request, not of each image
        work = asyncio.gather(*[_result(request, pipeline, query, model) for query in queries])
        return _json(GroundBatchResponse(results=await unless_client_leaves(request, work)))
    [query] = queries
    grounded = await unless_client_leaves(request, ground_query(request, pipeline, query, model, wants_png))
    timing = {"Server-Timing": _server_timing(grounded.answer)}
    if wants_png:
        return Response(grounded.png, media_type=PNG, headers=timing)
    return _json(grounded.answer, timing)


@router.get("/v1/models", responses=KEY_PROBLEMS)
async def served_models(registry: TheRegistry) -> ServedModels:
    """The versions being served."""
    served = [
        ServedModel(
            name=name,
            version=model.bundle.version,
            digest=model.digest,
            kind=model.bundle.kind,
            gives=model.processor.kind.gives(model.bundle),
            several=model.processor.kind.several(model.bundle),
            heatmaps=model.processor.kind.heatmaps(model.bundle),
            knows=model.bundle.knows,
            default=name == registry.default_model,
            ready=name not in registry.faults,
            present_threshold=model.bundle.present_threshold,
            evaluation=model.bundle.evaluation,
        )
        for name, model in sorted(registry.models.items())
    ]
    return ServedModels(models=served)


@router.post("/v1/reload", responses=RELOAD_PROBLEMS)
async def reload(request: Request, registry: TheRegistry) -> ServedModels:
    """Looks for new versions now, not at the next interval. If keys are used, it needs one with the scope `admin`."""
    budget: Budget = request.state.budget
    try:
        async with asyncio.timeout(budget.left_s()):
            await unless_client_leaves(request, registry.refresh())
    except TimeoutError as error:
        raise DeadlineError("inference", budget.seconds) from error
    return await served_models(registry)


@router.get("/v1/metadata", responses=KEY_PROBLEMS)
async def metadata(registry: TheRegistry, pipeline: ThePipeline) -> Metadata:
    """The service's version, models with their figures, formats and limits."""
    settings = pipeline.settings
    limits = Limits(
        body_bytes=settings.max_body_bytes,
        image_bytes=settings.max_image_bytes,
        image_pixels=settings.max_pixels,
        images=settings.max_images,
        expressions=settings.max_expressions,
        expression_characters=MAX_EXPRESSION_CHARACTERS,
        deadline_s=settings.deadline_s,
    )
    return Metadata(
        name="referent",
        version=__version__,
        models=(await served_models(registry)).models,
        formats=[f"image/{name.lower()}" for name in FORMATS],
        image_urls=settings.image_urls,
        limits=limits,
    )


@router.get("/healthz")
@router.get("/livez")
async def livez() -> schemas.Status:
    """The process answers."""
    return schemas.Status(status="ok")


@router.get("/readyz", responses=READINESS_PROBLEMS)
async def readyz(registry: TheRegistry) -> schemas.Status:
    """The latest golden inference of every model passed."""
    registry.check_ready()
    return schemas.Status(status="ready")


@router.get("/v2/health/live", tags=["open-inference"])
async def live() -> dict[str, bool]:
    """As /livez."""
    return {"live": True}


@router.get("/v2/health/ready", tags=["open-inference"], responses=READINESS_PROBLEMS)
async def ready(registry: TheRegistry) -> dict[str, bool]:
    """As /readyz."""
    registry.check_ready()
    return {"ready": True}


async def ground_query(
    request: Request, pipeline: Pipeline, query: Query, model: str | None, with_picture: bool = False
) -> Grounded:
    """Answers a query within the request's budget."""
    return await pipeline.ground(query, model, request.state.budget, correlation_id.get() or "", with_picture)


async def _result(request: Request, pipeline: Pipeline, query: Query, model: str | None) -> GroundBatchResult:
    """The answer or the problem of one image among several."""
    try:
        return GroundBatchResult(status=200, answer=(await ground_query(request, pipeline, query, model)).answer)
    except Exception as error:
        problem = problem_of(request, error)
        return GroundBatchResult(status=problem.status, problem=problem)


def _json(answer: BaseModel, headers: dict[str, str] | None = None) -> Response:
    """The answer as JSON; FastAPI would validate it again first."""
    return Response(answer.model_dump_json(), media_type=JSON, headers=headers)


def _server_timing(answer: GroundResponse) -> str:
    return ", ".join(f"{stage};dur={ms}" for stage, ms in answer.timings_ms.model_dump().items())


async def unless_client_leaves(request: Request, answer: Awaitable[T]) -> T:
    """The answer; if the client leaves before, or its body passes a limit, stops the work and raises `ClientDisconnect`
    or the error of the limit."""
    work, leaving = asyncio.ensure_future(answer), asyncio.create_task(_disconnection(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            leaving.result()  # raises what is wrong with a body that was still arriving
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
