"""Reads request bodies: JSON or multipart -> queries for the pipeline."""

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import structlog
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from gateway.schemas import GroundBatchRequest, GroundForm, GroundRequest, ImageInput, PredictRequest
from referent.core.interpreter import TURN
from referent.core.kind import Options

JSON, MULTIPART = "application/json", "multipart/form-data"
MAX_COMMAS = 10_000  # of JSON: a body of millions of tiny values takes minutes and gigabytes to refuse
BYTES_AN_ESCAPE = 30  # base64 in lines has two escapes in 78 bytes; parsing them is slow, and holds the interpreter
MAX_PARTS = 1000  # of a form
MAX_PART_HEAD, MAX_PARAMETERS = 16_384, 16
# both take time in proportion to the text, also where they do not match
DISPOSITION = re.compile(r"^content-disposition:[^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+", re.IGNORECASE | re.MULTILINE)
PARAMETER = re.compile(  # RFC 9110, 5.6.6, but names and values may have any characters that do not end them
    r';(?P<name>[^;="]*+)(?:=\s*+(?:"(?P<quoted>(?:\\.|[^"\\])*+)"\s*+|(?P<value>[^;"]*+)))?+(?=;|$)', re.DOTALL
)
STEP = 1 << 20  # bytes searched at a time, since a search holds the interpreter
Schema = TypeVar("Schema", GroundRequest, GroundBatchRequest, GroundForm, PredictRequest)

log = structlog.get_logger("gateway")


class BodyTooLargeError(ValueError):
    """The body has more bytes than the limit."""


class MediaTypeError(ValueError):
    """The body is neither JSON nor multipart."""


class MalformedRequestError(ValueError):
    """The body is not what its content type says, or an image is not base64."""


class InvalidRequestError(ValueError):
    """The body lacks a field, or has one with a wrong value or name."""


class Query(NamedTuple):
    """A caller's question about one image."""

    image: bytes | ImageInput
    expressions: list[str]
    options: Options = Options()


class Queries(NamedTuple):
    """A caller's questions; `together` if the answer is a list of results."""

    queries: list[Query]
    model: str | None
    together: bool


async def read_queries(request: Request) -> Queries:
    """The body of POST /v1/ground. Raises the errors of this module."""
    if _media_type(request) == MULTIPART:
        form = await asyncio.to_thread(_form, await _body(request), request.headers["content-type"])
        return Queries([Query(form.image, form.expression, form.options)], form.model, together=False)
    asked = await asyncio.to_thread(_ground_request, await _json_body(request))
    if isinstance(asked, GroundBatchRequest):
        queries = [Query(each.image, each.expressions, each.options) for each in asked.images]
        return Queries(queries, asked.model, together=True)
    return Queries([Query(asked.image, asked.expressions, asked.options)], asked.model, together=False)


async def read_predict(request: Request) -> PredictRequest:
    """The body of POST /predict. Raises the errors of this module."""
    body = await _json_body(request)
    return await asyncio.to_thread(_predict_request, body)


def _ground_request(body: bytearray) -> GroundRequest | GroundBatchRequest:
    with _read_as(JSON):
        fields = _parsed(body)
        if isinstance(fields, dict) and "images" in fields:
            return _validated(GroundBatchRequest, fields)
        return _validated(GroundRequest, fields)


def _predict_request(body: bytearray) -> PredictRequest:
    with _read_as(JSON):
        return _validated(PredictRequest, _parsed(body))


def _form(body: bytearray, content_type: str) -> GroundForm:
    """`expression` may be repeated; `image` is bytes, whether its part has a file's name or not."""
    with _read_as(MULTIPART):
        fields: dict[str, list[bytes]] = {}
        for number, (name, content) in enumerate(_parts(body, content_type)):
            if number == MAX_PARTS:
                raise MalformedRequestError(f"the form has more than {MAX_PARTS} parts: send fewer expressions")
            fields.setdefault(name, []).append(content)
        if repeated := [name for name, given in fields.items() if len(given) > 1 and name != "expression"]:
            raise MalformedRequestError(f"the form has more than one {repeated[0][:40]}: send one in a request")
        values: dict[str, Any] = {}
        for name, given in fields.items():
            found = given if name == "image" else [text.decode() for text in given]
            values[name] = found if name == "expression" else found[0]
        return _validated(GroundForm, values)


def _parts(body: bytearray, content_type: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a form's parts, as RFC 2046 defines them: a preamble before the first boundary is skipped.

    python-multipart can't read such a preamble, and accepts forms that were cut off.
    """
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        raise MalformedRequestError(
            f"the content type {content_type[:80]!r} names no boundary: let the HTTP client set it"
        )
    delimiter = f"\r\n--{boundary}".encode("latin-1")
    at = 0 if body.startswith(delimiter[2:]) else body.find(delimiter) + 2
    if at == 1:
        raise MalformedRequestError("the form does not contain the boundary that its content type names")
    at += len(delimiter) - 2
    while not body.startswith(b"--", at):
        end = body.find(delimiter, at)
        if end < 0:
            raise MalformedRequestError("the form is cut off: its last boundary is missing")
        blank = body.find(b"\r\n\r\n", at, min(end, at + MAX_PART_HEAD))
        head = body[at:blank].decode(errors="replace") if blank >= 0 else ""
        found = DISPOSITION.search(head)
        name = _parameter(found[0], "name") if found else None
        if name is None:
            raise MalformedRequestError("the form has a part without a name: name each image, expression or option")
        yield name, bytes(memoryview(body)[blank + 4 : end])
        at = end + len(delimiter)


def _parameter(header: str, name: str) -> str | None:
    """The value of a header's parameter. Takes time in proportion to the header, unlike `email.message`."""
    at = len(header.partition(";")[0])
    for _ in range(MAX_PARAMETERS):
        found = PARAMETER.match(header, at)
        if not found:
            break
        if found["name"].strip().lower() == name:
            quoted, value = found["quoted"], found["value"]
            return value and value.strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = found.end()
    return None


@contextmanager
def _read_as(what: str) -> Iterator[None]:
    """Turns every error in reading a body into `MalformedRequestError`: a bad body must not be answered with 500."""
    try:
        yield
    except (MalformedRequestError, InvalidRequestError):
        raise
    except UnicodeDecodeError:
        raise MalformedRequestError(f"the {what} has a field that is not UTF-8") from None
    except Exception as error:
        log.warning("a body can't be read", exc_info=error)
        raise MalformedRequestError(f"the body can't be read as {what}") from error


async def _json_body(request: Request) -> bytearray:
    if (media_type := _media_type(request)) != JSON:
        sent = media_type[:80] or "of no type"
        raise MediaTypeError(f"the body is {sent}; send {JSON}, or {MULTIPART} to /v1/ground")
    return await _body(request)


async def _body(request: Request) -> bytearray:
    """The body, appended to one buffer: joining its pieces at the end would copy megabytes and block the event loop."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
    return body


def _parsed(body: bytearray) -> Any:
    """The JSON value. Slow if it contains megabytes of base64, so call it in a thread."""
    if _count(body, b",") > MAX_COMMAS:
        raise InvalidRequestError(f"the body has more than {MAX_COMMAS} commas: send fewer values")
    if _count(body, b"\\") > MAX_COMMAS + len(body) // BYTES_AN_ESCAPE:
        raise InvalidRequestError(
            "the body has more escaped characters than base64 in lines needs: send base64 without escapes"
        )
    try:
        if body.startswith(BOM_UTF8):
            del body[: len(BOM_UTF8)]
        with TURN:
            return from_json(body, allow_inf_nan=False)
    except ValueError as error:  # also if nested too deeply: the parser stops at about 200 levels
        raise MalformedRequestError(f"the body is not JSON: {error}") from None


def _count(body: bytearray, sign: bytes) -> int:
    return sum(body.count(sign, at, at + STEP) for at in range(0, len(body), STEP))


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
