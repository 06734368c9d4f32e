"""What FastAPI can't derive for OpenAPI: bodies that are read by hand, and problems."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.body import JSON, MULTIPART
from gateway.errors import TABLE
from gateway.schemas import GroundForm, GroundRequest, PredictRequest, Problem

COMPONENT = "#/components/schemas/{model}"


def body_of(json: type[BaseModel], form: type[BaseModel] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is JSON, or a form too."""
    schemas = {JSON: json} | ({MULTIPART: form} if form else {})
    content = {media_type: {"schema": _reference(schema)} for media_type, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: every kind of problem with one of the statuses."""
    content = {"application/problem+json": {"schema": _reference(Problem)}}
    titles = {status: [kind.title for kind in TABLE.values() if kind.status == status] for status in statuses}
    return {status: {"description": "; ".join(titles[status]), "content": content} for status in statuses}


def add_schemas(app: FastAPI) -> None:
    """Makes the document hold the schemas that `body_of` and `problems` refer to."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        modes: Any = [(GroundRequest, "validation"), (GroundForm, "validation"), (PredictRequest, "validation")]
        _, ours = models_json_schema([*modes, (Problem, "serialization")], ref_template=COMPONENT)
        document["components"]["schemas"] |= ours["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _reference(schema: type[BaseModel]) -> dict[str, str]:
    return {"$ref": COMPONENT.format(model=schema.__name__)}
