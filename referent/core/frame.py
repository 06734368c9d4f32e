"""Maps between pixels of an image and shares of the frame that a model's coordinates refer to."""

from dataclasses import dataclass

import numpy as np

from referent.core.boxes import Floats, cxcywh_to_xyxy, xyxy_to_cxcywh


@dataclass(frozen=True)
class Frame:
    """`share = (pixel * scale + offset) / unit` on each axis (x, y): pixels of the image, shares 0..1 of the frame.

    Nothing is clipped. Both directions are exact inverses.
    """

    image_size: tuple[int, int]  # (width, height)
    scale: tuple[float, float]
    offset: tuple[int, int]
    unit: tuple[int, int]

    def points_to_image(self, points: Floats) -> Floats:
        """(..., 2) x, y in shares -> pixels, float64."""
        return np.asarray((points * np.array(self.unit, np.float64) - self.offset) / self.scale)

    def points_from_image(self, points_xy: Floats) -> Floats:
        """(..., 2) x, y in pixels -> shares."""
        return np.asarray((points_xy * np.array(self.scale) + self.offset) / self.unit)

    def boxes_to_image(self, boxes_cxcywh: Floats) -> Floats:
        """(..., 4) cx, cy, w, h in shares -> x1, y1, x2, y2 in pixels, float64."""
        corners = cxcywh_to_xyxy(np.asarray(boxes_cxcywh, np.float64))
        return self.points_to_image(corners.reshape(*corners.shape[:-1], 2, 2)).reshape(corners.shape)

    def boxes_from_image(self, boxes_xyxy: Floats) -> Floats:
        """(..., 4) x1, y1, x2, y2 in pixels -> cx, cy, w, h in shares."""
        corners = np.asarray(boxes_xyxy)
        shares = self.points_from_image(corners.reshape(*corners.shape[:-1], 2, 2)).reshape(corners.shape)
        return xyxy_to_cxcywh(shares)
