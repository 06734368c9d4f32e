"""Gets the bytes of a request's image: from the request itself, from base64 in its JSON, or from a URL."""

import asyncio

from gateway.budget import Budget
from gateway.schemas import ImageInput
from gateway.settings import Settings
from referent.core.fetch import FetchError, FetchPolicy, fetch
from referent.core.images import FORMATS
from referent.core.sources import from_base64

MEDIA_TYPES = frozenset(
    {f"image/{name.lower()}" for name in FORMATS} | {"application/octet-stream", "binary/octet-stream"}
)


class ImageReader:
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
        """The image file; fetched bytes count in the budget. Raises `Base64Error`, `ImageTooLargeError`,
        `referent.core.fetch.FetchError` and `gateway.admission.OverloadedError`."""
        if isinstance(image, bytes):
            return image
        if image.base64:
            text, image.base64 = image.base64, ""  # so that the text, as large as the file, is not kept as well
            return await asyncio.to_thread(from_base64, text, self._settings.max_image_bytes)
        if self._settings.image_urls == "off":
            raise FetchError(
                "images by URL are off here: send the image itself, or ask the operator to set REFERENT_IMAGE_URLS"
            )
        return await fetch(
            image.url,
            max_bytes=self._settings.max_image_bytes,
            deadline_s=budget.left_s(),
            policy=self._policy,
            on_bytes=budget.hold,
        )
