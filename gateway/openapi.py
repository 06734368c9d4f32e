"""Adds to OpenAPI what FastAPI can't derive: bodies that are read by hand, pictures, problems, and examples."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.body import JSON, MULTIPART
from gateway.errors import TABLE, Fault
from gateway.keys import FREE_PATHS
from gateway.schemas import PIXEL, GroundBatchRequest, GroundForm, GroundRequest, PredictRequest
from referent.core.api import EXAMPLE, PROBLEM_JSON, Problem
from referent.core.images import ImageError

KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
COMPONENT = "#/components/schemas/{model}"
PNG = "image/png"

QUERY = {"image": {"base64": PIXEL}, "expressions": ["the queen", "the king on the left"]}
BY_URL = {"image": {"url": "https://images.example.org/table.jpg"}, "expressions": ["the ace"]}
BODY_EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    GroundRequest: {
        "base64": QUERY,
        "data URL": {"image": {"base64": f"data:image/png;base64,{PIXEL}"}, "expressions": ["the queen"]},
        "URL, where the service allows them": BY_URL,
    },
    GroundBatchRequest: {"several images": {"images": [QUERY, {**QUERY, "expressions": ["the ace"]}]}},
    PredictRequest: {"base64": {"image": PIXEL, "text": "the queen"}},
}


def body_of(*json: type[BaseModel], form: type[BaseModel] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is JSON of one of the schemas, or a form."""
    references = [_reference(schema) for schema in json]
    examples = {name: {"value": value} for schema in json for name, value in BODY_EXAMPLES[schema].items()}
    schema: dict[str, Any] = {"anyOf": references} if len(references) > 1 else references[0]
    content: dict[str, Any] = {JSON: {"schema": schema, "examples": examples}}
    if form:
        content[MULTIPART] = {"schema": _reference(form)}
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: every kind of problem with one of the statuses, an example of each."""
    return {status: _problems([fault for fault in TABLE.values() if fault.status == status]) for status in statuses}


def _problems(faults: list[Fault]) -> dict[str, Any]:
    content = {"schema": _reference(Problem), "examples": {fault.slug: {"value": _example(fault)} for fault in faults}}
    return {
        "description": "; ".join(dict.fromkeys(fault.title for fault in faults)),
        "content": {PROBLEM_JSON: content},
    }


def _example(fault: Fault) -> dict[str, Any]:
    return fault.problem(
        "what was wrong with which value, and what to do about it", "/v1/ground", "4f1c9a"
    ).model_dump()


_RESULTS = [{"status": 200, "answer": EXAMPLE}, {"status": 422, "problem": _example(TABLE[ImageError])}]
GROUND_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Where the referents are; as a picture for one image with `Accept: image/png`",
        "content": {
            JSON: {"examples": {"one image": {"value": EXAMPLE}, "several images": {"value": {"results": _RESULTS}}}},
            PNG: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def add_schemas(app: FastAPI, with_keys: bool) -> None:
    """Adds to the document the schemas that `body_of` and `problems` refer to, and how to send a key."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        bodies: Any = (GroundRequest, GroundBatchRequest, GroundForm, PredictRequest)
        modes: Any = [*[(body, "validation") for body in bodies], (Problem, "serialization")]
        _, ours = models_json_schema(modes, ref_template=COMPONENT)
        document["components"]["schemas"] |= ours["$defs"]
        if with_keys:
            document["components"]["securitySchemes"] = KEY_SCHEMES
            for path, operations in document["paths"].items():
                for operation in operations.values() if path not in FREE_PATHS else ():
                    operation["security"] = [{scheme: []} for scheme in KEY_SCHEMES]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _reference(schema: type[BaseModel]) -> dict[str, str]:
    return {"$ref": COMPONENT.format(model=schema.__name__)}
