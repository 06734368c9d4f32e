"""Images: safe decoding, and the square a model sees together with the exact way back to the image.

Training, evaluation and the gateway all prepare images here; sizes are (width, height), arrays (H, W, 3).
"""

import io
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import BaseModel, ConfigDict, Field

from referent.core.boxes import Floats

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
MAX_SCANS = 30  # of a JPEG; some ten are usual, and each is a pass over all pixels however few its bytes
DRAFT_MARGIN = 2  # a JPEG decoded at 1/2, 1/4 or 1/8 keeps at least this many times the sides that the model sees
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
CLIP_MEAN_RGB = (122, 116, 104)  # int(255 * CLIP's channel means), the padding of LLaVA's `pad` mode


class ImageError(ValueError):
    """The bytes are no image that can be used; the message names the reason and the remedy."""


class ImageFormatError(ImageError):
    """The bytes are not JPEG, PNG or WebP."""


class ImageTooLargeError(ImageError):
    """The header announces more pixels than the limit."""


class Picture(NamedTuple):
    """An image as a model needs it, perhaps in fewer pixels than it has."""

    pixels: Image.Image  # RGB
    size: tuple[int, int]  # of the whole image, in which boxes count


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode JPEG, PNG or WebP bytes (first frame) into RGB as a viewer shows it: EXIF orientation applied,
    transparency on white, 16 bits reduced to 8, CMYK converted; colour profiles are not applied.

    The size is read from the header and checked before any pixel is decoded. Raises `ImageError`.
    """
    image = _opened(data, max_pixels)
    return _decoded(image, image.size).pixels


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """The image, of which only the header has been read."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"image is too large: {error}") from error
    except (
        Exception
    ) as error:  # parsers of untrusted headers raise whatever they hit: OSError, SyntaxError, struct.error
        raise ImageFormatError(f"not a {', '.join(FORMATS)} image ({len(data)} bytes)") from error
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"image is {image.width * image.height / 1e6:.1f} MP ({image.width}x{image.height}); "
            f"the limit is {max_pixels / 1e6:.1f} MP: send a smaller one"
        )
    if isinstance(image, JpegImageFile) and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ImageError(f"the JPEG image has {scans} scans; the limit is {MAX_SCANS}: save it anew")
    return image


def _decoded(image: Image.Image, size: tuple[int, int]) -> Picture:
    """The pixels of an opened image of `size`, and that size as shown."""
    try:
        image.load()
        sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        ImageOps.exif_transpose(image, in_place=True)
        return Picture(to_rgb(image), size[::-1] if sideways else size)
    except Exception as error:  # as above: broken pixel data or EXIF
        raise ImageError(f"the {image.format} image is truncated or damaged: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparency on white, 16 bits reduced to 8."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the square a model sees: `square = image * scale + offset`, per axis, in pixels."""

    image_size: tuple[int, int]
    square_size: int
    scale: tuple[float, float]
    offset: tuple[int, int]

    def to_square(self, boxes_xyxy: Floats) -> Floats:
        """(..., 4) pixels of the image -> pixels of the square; nothing is clipped."""
        return np.asarray(boxes_xyxy * np.tile(self.scale, 2) + np.tile(self.offset, 2))

    def to_image(self, boxes_xyxy: Floats) -> Floats:
        """(..., 4) pixels of the square -> pixels of the image, the exact inverse of `to_square`."""
        return np.asarray((boxes_xyxy - np.tile(self.offset, 2)) / np.tile(self.scale, 2))


class ImageTransform(BaseModel):
    """How an image becomes the model's square. Travels with the model (checkpoint and bundle).

    - `letterbox`: the whole image, centred, padded with `pad_rgb` (LLaVA's `pad`).
    - `center_crop`: the middle of the image, its shorter side filling the square (CLIP's own processor).
    - `stretch`: the whole image, each axis scaled by itself (PaliGemma).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["letterbox", "center_crop", "stretch"] = "letterbox"
    size: int = Field(gt=0, description="side of the square, pixels")
    pad_rgb: tuple[int, int, int] = CLIP_MEAN_RGB

    def place(self, image_size: tuple[int, int]) -> Placement:
        """Geometry alone, for an image of (width, height)."""
        width, height = self._resized(image_size)
        offset = ((self.size - width) // 2, (self.size - height) // 2)  # negative where the crop cuts
        return Placement(image_size, self.size, (width / image_size[0], height / image_size[1]), offset)

    def decode(self, data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
        """As `decode_image`, for this transform alone.

        A JPEG much larger than what the square shows is decoded at 1/2, 1/4 or 1/8, which saves most of the time. Only
        where that divides its sides: another scale in x than in y would move what is in it.
        """
        image = _opened(data, max_pixels)
        size = image.size
        for scale in (8, 4, 2):
            if all(
                side % scale == 0 and side >= scale * DRAFT_MARGIN * wanted
                for side, wanted in zip(size, self._resized(size), strict=True)
            ):
                image.draft("RGB", (size[0] // scale, size[1] // scale))  # does nothing to other formats
                break
        return _decoded(image, size)

    def apply(self, image: Image.Image | Picture) -> tuple[npt.NDArray[np.uint8], Placement]:
        """RGB image -> ((S, S, 3) uint8, placement); bicubic, antialiased."""
        pixels, size = image if isinstance(image, Picture) else (image, image.size)
        placement = self.place(size)
        # the part of the image that the square shows: resizing only that keeps memory bounded for 10,000x3 images
        shown = placement.to_image(np.array([0.0, 0.0, self.size, self.size]))
        shown *= np.tile(np.divide(pixels.size, size), 2)
        left, top = (max(0.0, float(v)) for v in shown[:2])
        right, bottom = (min(float(limit), float(v)) for limit, v in zip(pixels.size, shown[2:], strict=True))
        width, height = (min(self.size, side) for side in self._resized(size))
        resized = pixels.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        if resized.size == (self.size, self.size):
            return np.array(resized), placement
        square = Image.new("RGB", (self.size, self.size), self.pad_rgb)
        square.paste(resized, placement.offset)
        return np.array(square), placement

    def _resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        if self.mode == "stretch":
            return self.size, self.size
        reference = max(image_size) if self.mode == "letterbox" else min(image_size)
        width, height = (max(1, round(side * self.size / reference)) for side in image_size)
        return width, height
