"""The HTTP API."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Depends, Request, Response
from starlette.requests import ClientDisconnect

from gateway import schemas
from gateway.body import decode_base64, read_json, read_query
from gateway.openapi import body_of, problems
from gateway.pipeline import Pipeline
from gateway.registry import Model, NotReadyError, Registry
from referent.api import GroundResponse

router = APIRouter()
GROUNDING_PROBLEMS = problems(400, 404, 413, 415, 422, 500, 502, 503, 504)
READINESS_PROBLEMS = problems(503)


def _pipeline(request: Request) -> Pipeline:
    pipeline: Pipeline = request.app.state.pipeline
    return pipeline


def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


ThePipeline = Annotated[Pipeline, Depends(_pipeline)]
TheRegistry = Annotated[Registry, Depends(_registry)]


@router.post(
    "/v1/ground",
    responses=GROUNDING_PROBLEMS,
    openapi_extra=body_of(schemas.GroundRequest, schemas.GroundForm),
)
async def ground(request: Request, response: Response, pipeline: ThePipeline) -> GroundResponse:
    """Where in the image is what each expression refers to?"""
    query = await read_query(request)
    answer = await _unless_client_leaves(
        request, pipeline.ground(query.image, query.expressions, query.model, correlation_id.get() or "")
    )
    timings = answer.timings_ms.model_dump()
    response.headers["Server-Timing"] = ", ".join(f"{stage};dur={ms}" for stage, ms in timings.items())
    return answer


@router.post(
    "/predict",
    tags=["visual-grounding-api"],
    responses=GROUNDING_PROBLEMS,
    openapi_extra=body_of(schemas.PredictRequest),
)
async def predict(request: Request, pipeline: ThePipeline) -> schemas.PredictResponse:
    """One expression, as clients of visual-grounding-api ask."""
    asked = await read_json(request, schemas.PredictRequest)
    image = await asyncio.to_thread(decode_base64, asked.image)
    model = None if asked.model == "main" else asked.model
    answer = await _unless_client_leaves(
        request, pipeline.ground(image, [asked.text], model, correlation_id.get() or "")
    )
    return schemas.PredictResponse(
        bbox=answer.results[0].box_cxcywh_normalized,
        model=asked.model,
        inference_time_ms=answer.timings_ms.inference,
    )


@router.get("/health", tags=["visual-grounding-api"], responses={503: {"model": schemas.HealthResponse}})
async def health(registry: TheRegistry, response: Response) -> schemas.HealthResponse:
    """Whether the models answer."""
    response.status_code = 200 if registry.ready else 503
    status = "ok" if registry.ready else "unavailable"
    return schemas.HealthResponse(status=status, models_loaded=sorted(registry.models), device="triton")


@router.get("/models", tags=["visual-grounding-api"])
async def models(registry: TheRegistry) -> schemas.ModelsResponse:
    """The models and their figures."""
    return schemas.ModelsResponse(models=[_summary(model) for _, model in sorted(registry.models.items())])


@router.get("/v1/models")
async def served_models(registry: TheRegistry) -> schemas.ServedModels:
    """The versions being served."""
    served = [
        schemas.ServedModel(
            name=name,
            version=model.bundle.version,
            digest=model.digest,
            default=name == registry.default_model,
            ready=name not in registry.faults,
            evaluation=model.bundle.evaluation,
        )
        for name, model in sorted(registry.models.items())
    ]
    return schemas.ServedModels(models=served)


@router.get("/livez")
async def livez() -> schemas.Status:
    """The process answers."""
    return schemas.Status(status="ok")


@router.get("/readyz", responses=READINESS_PROBLEMS)
async def readyz(registry: TheRegistry) -> schemas.Status:
    """The latest golden inference of every model passed."""
    if not registry.ready:
        raise NotReadyError(f"not ready: {', '.join(sorted(registry.faults)) or 'no model in the repository'}")
    return schemas.Status(status="ready")


async def _unless_client_leaves(request: Request, answer: Coroutine[Any, Any, GroundResponse]) -> GroundResponse:
    """The answer; where the client leaves before it, stops the work and raises ClientDisconnect."""
    work, leaving = asyncio.create_task(answer), asyncio.create_task(_disconnection(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _summary(model: Model) -> schemas.ModelSummary:
    first_set: dict[str, float] = next(iter(model.bundle.evaluation.values()), {})
    return schemas.ModelSummary(
        name=model.bundle.name,
        description=f"version {model.bundle.version}",
        test_iou=first_set.get("mean_iou"),
        test_rmse=first_set.get("rmse"),
        test_mae=first_set.get("mae"),
    )
