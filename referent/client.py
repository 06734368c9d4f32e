"""Client of a running service.

from referent.client import Client
Client().ground("photo.jpg", ["the queen", "the king on the left"]).results[0].box_xyxy
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from PIL import Image

from referent.api import GroundResponse

DEFAULT_URL = "http://127.0.0.1:8000"


class ServiceUnreachableError(ConnectionError):
    """Nothing answers at the URL, or not in time."""


class ServiceError(RuntimeError):
    """The service answered with a problem; the attributes are those of its problem+json."""

    def __init__(self, response: httpx.Response) -> None:
        is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
        problem: dict[str, Any] = response.json() if is_problem else {}
        self.status = response.status_code
        self.type: str = problem.get("type", "about:blank")
        self.title: str = problem.get("title", response.reason_phrase)
        self.detail: str = problem.get("detail", response.text[:200])
        self.request_id: str | None = problem.get("request_id")
        self.retryable: bool = problem.get("retryable", False)
        self.stage: str | None = problem.get("stage")
        super().__init__(f"{self.title}: {self.detail} (status {self.status}, request {self.request_id})")


class Client:
    """Asks the service at `url`; `timeout_s` limits each request. Close it, or use it in a `with`."""

    def __init__(
        self, url: str = DEFAULT_URL, timeout_s: float = 30, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ground(
        self, image: str | Path | bytes | Image.Image, expressions: str | Sequence[str], model: str | None = None
    ) -> GroundResponse:
        """Where in the image (a file, its bytes, or a picture) is what each expression refers to?

        Raises OSError for a file that can't be read, `ServiceUnreachableError` and `ServiceError`.
        """
        form = {"expression": [expressions] if isinstance(expressions, str) else list(expressions)}
        data = form | ({"model": model} if model else {})
        try:
            response = self._http.post("/v1/ground", files={"image": ("image", _encoded(image))}, data=data)
        except httpx.TransportError as error:
            raise ServiceUnreachableError(
                f"no answer from {self.url} ({error or type(error).__name__}); start a service with: referent serve"
            ) from error
        if response.is_error:
            raise ServiceError(response)
        return GroundResponse.model_validate_json(response.content)


def _encoded(image: str | Path | bytes | Image.Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
