"""Request bodies: a cap on their bytes, and JSON or multipart into what the pipeline takes."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.schemas import GroundForm, GroundRequest, PredictRequest

JSON, MULTIPART = "application/json", "multipart/form-data"
MAX_COMMAS = 10_000  # of JSON: a body of millions of tiny values takes minutes and gigabytes to refuse
Schema = TypeVar("Schema", GroundRequest, GroundForm, PredictRequest)


class BodyTooLargeError(ValueError):
    """The body has more bytes than the limit."""


class MediaTypeError(ValueError):
    """The body is neither JSON nor multipart."""


class MalformedRequestError(ValueError):
    """The body is not what its content type says, or an image is no base64."""


class InvalidRequestError(ValueError):
    """The body lacks a field, or has one with a wrong value or name."""


class Query(NamedTuple):
    """What a caller asks."""

    image: bytes
    expressions: list[str]
    model: str | None


class BodyLimit:
    """ASGI middleware: raises `BodyTooLargeError` as soon as a body is known to be over the limit."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = Headers(scope=scope).get("content-length", "0") if scope["type"] == "http" else "0"
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, int(announced)) > self._max_bytes:
                raise BodyTooLargeError(f"the body has more than {self._max_bytes} bytes: send a smaller image")
            return message

        await self._app(scope, counted, send)


async def read_query(request: Request) -> Query:
    """The body of POST /v1/ground. Raises the errors of this module."""
    if _media_type(request) == MULTIPART:
        try:
            return await _read_form(request)
        except HTTPException as error:
            raise MalformedRequestError(error.detail) from None
    asked = await read_json(request, GroundRequest)
    return Query(await asyncio.to_thread(decode_base64, asked.image.base64), asked.expressions, asked.model)


async def _read_form(request: Request) -> Query:
    async with request.form(max_files=1) as fields:
        values: dict[str, Any] = {
            name: fields.getlist(name) if name == "expression" else fields[name] for name in fields
        }
        if isinstance(file := values.get("image"), UploadFile):
            values["image"] = await file.read()
        form = _validated(GroundForm.model_validate, values)
    return Query(form.image, form.expression, form.model)


async def read_json(request: Request, schema: type[Schema]) -> Schema:
    """A JSON body. Raises the errors of this module."""
    if (media_type := _media_type(request)) != JSON:
        raise MediaTypeError(f"the body is {media_type or 'of no type'}; send {JSON}, or {MULTIPART} to /v1/ground")
    body = await request.body()
    if body.count(b",") > MAX_COMMAS:
        raise InvalidRequestError(f"the body has more than {MAX_COMMAS} commas: send fewer values")
    return await asyncio.to_thread(_validated, schema.model_validate_json, body)  # base64 of megabytes: off the loop


def decode_base64(text: str) -> bytes:
    """Base64, in lines too, or a base64 data URL -> bytes. Raises `MalformedRequestError`."""
    payload = text.partition(";base64,")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:
        raise MalformedRequestError(f"the image is not valid base64: {error}") from error


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _validated(validate: Callable[[Any], Schema], value: object) -> Schema:
    try:
        return validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(": ".join([".".join(map(str, fault["loc"])), fault["msg"]]) for fault in faults[:3])
        malformed = faults[0]["type"] == "json_invalid"
        raise (MalformedRequestError if malformed else InvalidRequestError)(text.removeprefix(": ")[:300]) from None
