"""The routes of visual-grounding-api, for its clients."""

from fastapi import APIRouter, Request, Response

from gateway import schemas
from gateway.body import Query, read_predict
from gateway.openapi import body_of
from gateway.pipeline import NoBoxError
from gateway.registry import Model
from gateway.routes import (
    GROUNDING_PROBLEMS,
    KEY_PROBLEMS,
    ThePipeline,
    TheRegistry,
    ground_query,
    unless_client_leaves,
)
from referent.core.answers import Answer

router = APIRouter(tags=["visual-grounding-api"])


@router.post("/predict", responses=GROUNDING_PROBLEMS, openapi_extra=body_of(schemas.PredictRequest))
async def predict(request: Request, pipeline: ThePipeline) -> schemas.PredictResponse:
    """One expression, for clients of visual-grounding-api. If the model gives no box, the problem has status 422."""
    asked = await read_predict(request)
    query = Query(schemas.ImageInput(base64=asked.image), [asked.text])
    model = None if asked.model == "main" else asked.model
    answer = (await unless_client_leaves(request, ground_query(request, pipeline, query, model))).answer
    [result] = answer.results
    if result.box_cxcywh_normalized is None:
        raise NoBoxError(_why_no_box(answer.model, result))
    return schemas.PredictResponse(
        bbox=result.box_cxcywh_normalized, model=asked.model, inference_time_ms=answer.timings_ms.inference
    )


@router.get("/health", responses={503: {"model": schemas.HealthResponse}})
async def health(registry: TheRegistry, response: Response) -> schemas.HealthResponse:
    """Whether the models answer."""
    response.status_code = 200 if registry.ready else 503
    status = "ok" if registry.ready else "unavailable"
    return schemas.HealthResponse(status=status, models_loaded=sorted(registry.models), device="triton")


@router.get("/models", responses=KEY_PROBLEMS)
async def models(registry: TheRegistry) -> schemas.ModelsResponse:
    """The models and their figures."""
    return schemas.ModelsResponse(models=[_summary(model) for _, model in sorted(registry.models.items())])


def _why_no_box(model: str, answer: Answer) -> str:
    if answer.point_xy is not None:
        return f"{model} answers with points: ask POST /v1/ground"
    return f"{model} gives no box for {answer.expression!r}: POST /v1/ground has its whole answer"


def _summary(model: Model) -> schemas.ModelSummary:
    first_set: dict[str, float] = next(iter(model.bundle.evaluation.values()), {})
    return schemas.ModelSummary(
        name=model.bundle.name,
        description=f"version {model.bundle.version}",
        test_iou=first_set.get("mean_iou"),
        test_rmse=first_set.get("rmse"),
        test_mae=first_set.get("mae"),
    )
