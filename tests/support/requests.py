"""Images and request bodies."""

import base64
import io
from typing import Any

from PIL import Image


def jpeg(width: int = 100, height: int = 100, orientation: int = 1) -> bytes:
    """A JPEG file; `orientation` is EXIF's."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def in_json(image: bytes, *expressions: str, prefix: str = "", **fields: Any) -> dict[str, Any]:
    """The body of POST /v1/ground."""
    return {"image": {"base64": prefix + base64.b64encode(image).decode()}, "expressions": list(expressions), **fields}
