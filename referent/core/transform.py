"""The square that a model sees of an image, and the frame that its coordinates refer to."""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from referent.core.frame import Frame
from referent.core.images import MAX_PIXELS, Picture, decode_reduced

DRAFT_MARGIN = 2  # a JPEG decoded at 1/2, 1/4 or 1/8 keeps at least this many times the sides that the model sees
WHOLE = 8  # an image is resized as a whole if no side becomes longer than so many squares
STRIP_ROWS = 256  # rows padded at a time
CLIP_MEAN_RGB = (122, 116, 104)  # int(255 * CLIP's channel means), the padding of LLaVA's `pad` mode


class ImageTransform(BaseModel):
    """How an image becomes the model's square. Travels with the model (checkpoint and bundle).

    - `letterbox`: the whole image, centred, padded with `pad_rgb` (LLaVA's `pad`).
    - `center_crop`: the middle of the image, its shorter side filling the square (CLIP's own processor).
    - `stretch`: the whole image, each axis scaled by itself (PaliGemma).
    - `pad`: as `letterbox`, but padded first, by whole pixels of the image, and then resized (LLaVA's own code). The
      square is exactly the same as there, so no image is decoded at less than its size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["letterbox", "center_crop", "stretch", "pad"] = "letterbox"
    size: int = Field(gt=0, description="side of the square, pixels")
    pad_rgb: tuple[int, int, int] = CLIP_MEAN_RGB
    resample: Literal["bicubic", "bilinear"] = "bicubic"

    def frame(self, image_size: tuple[int, int]) -> Frame:
        """Where an image of (width, height) lies in the square; shares are of the square's side."""
        if self.mode == "pad":
            side = max(image_size)
            padding = ((side - image_size[0]) // 2, (side - image_size[1]) // 2)
            return Frame(image_size, (1, 1), padding, (side, side))
        width, height = self._resized(image_size)
        # negative where the crop cuts; CLIP's own processor rounds towards zero as well
        offset = (int((self.size - width) / 2), int((self.size - height) / 2))
        scale = (width / image_size[0], height / image_size[1])
        return Frame(image_size, scale, offset, (self.size, self.size))

    def decode(self, data: bytes, max_pixels: int = MAX_PIXELS, until: float = math.inf) -> Picture:
        """As `decode_image`, but only good for this transform.

        A JPEG much larger than what the square shows is decoded at 1/2, 1/4 or 1/8, which saves most of the time.
        """
        return decode_reduced(data, self._reduction, max_pixels, until)

    def apply(self, image: Image.Image | Picture) -> npt.NDArray[np.uint8]:
        """RGB image -> (S, S, 3) uint8, antialiased."""
        pixels, size = image if isinstance(image, Picture) else (image, image.size)
        if self.mode == "pad":
            return self._padded(pixels)
        frame, (width, height) = self.frame(size), self._resized(size)
        square = Image.new("RGB", (self.size, self.size), self.pad_rgb)
        if max(width, height) <= WHOLE * self.size:  # resized, then cut: bit by bit what CLIP's own processor does
            square.paste(pixels.resize((width, height), self._filter), frame.offset)
            return np.array(square)
        # resizing only the part of the image that the square shows keeps memory bounded for 10,000x3 images
        corners = frame.points_to_image(np.array([[0.0, 0.0], [1.0, 1.0]])) * np.divide(pixels.size, size)
        left, top = (max(0.0, float(v)) for v in corners[0])
        right, bottom = (min(float(limit), float(v)) for limit, v in zip(pixels.size, corners[1], strict=True))
        return np.array(pixels.resize(square.size, self._filter, box=(left, top, right, bottom)))

    def extent(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the image in a letterbox's square, in its pixels; the rest is padding."""
        (x, y), (width, height) = self.frame(image_size).offset, self._resized(image_size)
        return x, y, x + width, y + height

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling[self.resample.upper()]

    def _padded(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """As if the whole square were resized. That could take gigabytes, so it is done in strips of rows.

        Pillow resizes the rows first, each by itself, and then the columns.
        """
        width, height = image.size
        side, (x, y) = max(image.size), self.frame(image.size).offset
        narrow = Image.new("RGB", (self.size, side), self.pad_rgb)
        for top in range(0, height, STRIP_ROWS):
            rows = image.crop((0, top, width, min(top + STRIP_ROWS, height)))
            strip = Image.new("RGB", (side, rows.height), self.pad_rgb)
            strip.paste(rows, (x, 0))
            narrow.paste(strip.resize((self.size, rows.height), self._filter), (0, y + top))
        return np.array(narrow.resize((self.size, self.size), self._filter))

    def _reduction(self, size: tuple[int, int]) -> int:
        """Only a number that divides both sides: a different scale in x than in y would move the image's content."""
        if self.mode == "pad":
            return 1
        wanted = self._resized(size)
        return next(
            (
                by
                for by in (8, 4, 2)
                if all(s % by == 0 and s >= by * DRAFT_MARGIN * w for s, w in zip(size, wanted, strict=True))
            ),
            1,
        )

    def _resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        if self.mode == "stretch":
            return self.size, self.size
        if self.mode == "center_crop":  # CLIP's own processor rounds down
            width, height = (int(side * self.size / min(image_size)) for side in image_size)
        else:
            width, height = (max(1, round(side * (self.size / max(image_size)))) for side in image_size)
        return width, height
