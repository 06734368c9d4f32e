"""What the service can be asked, as requests."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from referent.client.results import Grounding
from referent.core.api import Metadata, ServedModels
from referent.core.kind import Options
from referent.core.sources import ImageSource, encoded, held, is_url

T = TypeVar("T")
Question = tuple[ImageSource, str | Sequence[str]]


class Call(NamedTuple, Generic[T]):
    """A request, as arguments for httpx, and how its answer is read."""

    request: dict[str, Any]
    read: Callable[[bytes, float], T]  # from the answer's body and the milliseconds that it took
    image_bytes: int = 0  # of the image in it


def ground_call(
    image: ImageSource, expressions: str | Sequence[str], model: str | None, options: Options
) -> Call[Grounding]:
    """Raises OSError for a file that can't be read, and ValueError for what is not an image or not an expression."""
    asked = _texts(expressions)
    named: dict[str, Any] = {"model": model} if model else {}
    # 0 is sent too: the service refuses it
    named |= {name: value for name, value in options._asdict().items() if value is not None and value is not False}
    request: dict[str, Any] = {"method": "POST", "url": "/v1/ground"}
    if is_url(image):
        request["json"] = {"image": {"url": image}, "expressions": asked, **named}
        return Call(request, lambda body, ms: Grounding.model_validate_json(body).of(image, ms))
    source = held(image)
    data = encoded(source)
    request["files"] = {"image": ("image", data)}
    request["data"] = {"expression": asked, **named}
    return Call(request, lambda body, ms: Grounding.model_validate_json(body).of(source, ms), len(data))


def _texts(expressions: str | Sequence[str]) -> list[str]:
    given = expressions if isinstance(expressions, Iterable) else [expressions]
    asked = [expressions] if isinstance(expressions, str) else list(given)
    for text in asked:
        if not isinstance(text, str):
            raise ValueError(f"{text!r:.80} is not an expression: give a text, or a list of texts")
        if any("\ud800" <= character <= "\udfff" for character in text):  # a byte that was not UTF-8
            raise ValueError(f"the expression {text!r} is not UTF-8 text")
    return asked


MODELS = Call({"method": "GET", "url": "/v1/models"}, lambda body, _: ServedModels.model_validate_json(body).models)
METADATA = Call({"method": "GET", "url": "/v1/metadata"}, lambda body, _: Metadata.model_validate_json(body))
