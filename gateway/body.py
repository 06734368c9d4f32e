"""Request bodies: JSON or multipart into what the pipeline takes."""

import asyncio
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from gateway.schemas import GroundBatchRequest, GroundForm, GroundRequest, ImageInput, PredictRequest
from referent.core.kind import Options

JSON, MULTIPART = "application/json", "multipart/form-data"
MAX_COMMAS = 10_000  # of JSON: a body of millions of tiny values takes minutes and gigabytes to refuse
Schema = TypeVar("Schema", GroundRequest, GroundBatchRequest, GroundForm, PredictRequest)


class BodyTooLargeError(ValueError):
    """The body has more bytes than the limit."""


class MediaTypeError(ValueError):
    """The body is neither JSON nor multipart."""


class MalformedRequestError(ValueError):
    """The body is not what its content type says, or an image is no base64."""


class InvalidRequestError(ValueError):
    """The body lacks a field, or has one with a wrong value or name."""


class Query(NamedTuple):
    """What a caller asks of one image."""

    image: bytes | ImageInput
    expressions: list[str]
    options: Options = Options()


class Queries(NamedTuple):
    """What a caller asks; `together` where it asks for a list of results."""

    queries: list[Query]
    model: str | None
    together: bool


async def read_queries(request: Request) -> Queries:
    """The body of POST /v1/ground. Raises the errors of this module."""
    if _media_type(request) == MULTIPART:
        form = await _read_form(request)
        return Queries([Query(form.image, form.expression, form.options)], form.model, together=False)
    asked = await asyncio.to_thread(_ground_request, await _json_body(request))
    if isinstance(asked, GroundBatchRequest):
        queries = [Query(each.image, each.expressions, each.options) for each in asked.images]
        return Queries(queries, asked.model, together=True)
    return Queries([Query(asked.image, asked.expressions, asked.options)], asked.model, together=False)


async def read_predict(request: Request) -> PredictRequest:
    """The body of POST /predict. Raises the errors of this module."""
    body = await _json_body(request)
    return await asyncio.to_thread(lambda: _validated(PredictRequest, _parsed(body)))


def _ground_request(body: bytes) -> GroundRequest | GroundBatchRequest:
    fields = _parsed(body)
    if isinstance(fields, dict) and "images" in fields:
        return _validated(GroundBatchRequest, fields)
    return _validated(GroundRequest, fields)


async def _read_form(request: Request) -> GroundForm:
    try:
        async with request.form(max_files=1) as fields:
            values: dict[str, Any] = {
                name: fields.getlist(name) if name == "expression" else fields[name] for name in fields
            }
            if isinstance(file := values.get("image"), UploadFile):
                values["image"] = await file.read()
            return _validated(GroundForm, values)
    except HTTPException as error:
        raise MalformedRequestError(error.detail) from None


async def _json_body(request: Request) -> bytes:
    if (media_type := _media_type(request)) != JSON:
        sent = media_type[:80] or "of no type"
        raise MediaTypeError(f"the body is {sent}; send {JSON}, or {MULTIPART} to /v1/ground")
    return await request.body()


def _parsed(body: bytes) -> Any:
    """Takes long where base64 of megabytes is in it."""
    if body.count(b",") > MAX_COMMAS:
        raise InvalidRequestError(f"the body has more than {MAX_COMMAS} commas: send fewer values")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:  # too deep as well: the parser stops at some 200 levels
        raise MalformedRequestError(f"the body is not JSON: {error}") from None


def _media_type(request: Request) -> str:
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise MediaTypeError(f"the body is encoded as {encoding[:80]!r}: send it as it is")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _validated(schema: type[Schema], fields: object) -> Schema:
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        texts = [": ".join([".".join(map(str, fault["loc"])), fault["msg"]]).removeprefix(": ") for fault in faults[:3]]
        raise InvalidRequestError("; ".join(texts)[:300]) from None
