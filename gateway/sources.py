"""Where an image comes from: the request's own bytes, base64 in its JSON, or a URL; all become bytes."""

import asyncio
import base64

from gateway.budget import Budget
from gateway.schemas import ImageInput
from gateway.settings import Settings
from referent.core.fetch import FetchError, FetchPolicy, fetch

MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/webp", "application/octet-stream", "binary/octet-stream"})


class Base64Error(ValueError):
    """The text is not base64."""


class Sources:
    """Reads images; URLs as the settings allow."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = FetchPolicy(
            allowed_hosts=settings.image_url_hosts if settings.image_urls == "allow-list" else None,
            private_hosts=settings.image_url_private_hosts,
            ports=settings.image_url_ports,
            media_types=MEDIA_TYPES,
        )

    async def read(self, image: bytes | ImageInput, budget: Budget) -> bytes:
        """The image file; what it fetches counts in the budget. Raises `Base64Error`,
        `referent.core.fetch.FetchError` and `gateway.admission.OverloadedError`."""
        if isinstance(image, bytes):
            return image
        if image.base64:
            return await asyncio.to_thread(_decoded, image.base64)  # megabytes: off the loop
        if self._settings.image_urls == "off":
            raise FetchError("images by URL are off here: send the image itself, or have REFERENT_IMAGE_URLS set")
        return await fetch(
            image.url,
            max_bytes=self._settings.max_image_bytes,
            deadline_s=budget.left_s(),
            policy=self._policy,
            on_bytes=budget.hold,
        )


def _decoded(text: str) -> bytes:
    """Base64, in lines too, or a base64 data URL -> bytes."""
    payload = text.partition(";base64,")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:
        raise Base64Error(f"the image is not valid base64: {error}") from None
