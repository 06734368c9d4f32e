"""Gets the bytes of a request's image: from the request itself, from base64 in its JSON, or from a URL."""

import asyncio
from binascii import a2b_base64

from gateway.budget import Budget
from gateway.schemas import ImageInput
from gateway.settings import Settings
from referent.core.fetch import FetchError, FetchPolicy, fetch
from referent.core.images import FORMATS, ImageTooLargeError

MEDIA_TYPES = frozenset(
    {f"image/{name.lower()}" for name in FORMATS} | {"application/octet-stream", "binary/octet-stream"}
)
WHITE_SPACE = b" \t\r\n\f\v"
PIECE = 1 << 18  # characters decoded at a time, since decoding holds the interpreter


class Base64Error(ValueError):
    """The text is not base64."""


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
            return await asyncio.to_thread(decoded, text, self._settings.max_image_bytes)
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


def decoded(text: str, max_bytes: int) -> bytes:
    """Base64, with or without line breaks, or a base64 data URL -> bytes; needs memory for text and result only.

    Raises `Base64Error`, and `ImageTooLargeError` for more bytes than the limit.
    """
    start = text.find(",") + 1 if text.startswith("data:") else 0
    if start and not text[:start].endswith(";base64,"):
        raise Base64Error("the image is a data URL without ;base64,: send its bytes in base64")
    image, rest = bytearray(), b""
    try:
        for at in range(start, len(text), PIECE):
            digits = rest + text[at : at + PIECE].encode("ascii").translate(None, WHITE_SPACE)
            whole = len(digits) // 4 * 4
            if (len(image) % 3 and whole) or b"===" in digits:  # Python 3.11 accepts too much padding
                raise ValueError("its padding is wrong")
            image += a2b_base64(digits[:whole], strict_mode=True)
            rest = digits[whole:]
            if len(image) > max_bytes:
                raise ImageTooLargeError(f"the image is too long; the limit is {max_bytes} bytes: send a smaller one")
        if rest:
            raise ValueError("it is cut off, or lacks its padding")
    except ImageTooLargeError:
        raise
    except ValueError as error:
        raise Base64Error(f"the image is not valid base64: {error}") from None
    return bytes(image)
