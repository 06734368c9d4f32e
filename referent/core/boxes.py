"""Boxes as numpy arrays: two formats, conversions between them, and overlap measures.

`xyxy` is (x1, y1, x2, y2), `cxcywh` is (centre x, centre y, width, height). A function works in whatever unit its
input has; names elsewhere say which: pixels of the image, or 0..1 of a square.
"""

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import WithJsonSchema

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
# one box; its JSON schema says "four numbers" in keywords that every draft of JSON Schema has
Box = Annotated[
    tuple[float, float, float, float],
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}),
]


def cxcywh_to_xyxy(boxes_cxcywh: Floats) -> Floats:
    """(..., 4) -> (..., 4), same unit."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy: Floats) -> Floats:
    """(..., 4) -> (..., 4), same unit."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def clip_xyxy(boxes_xyxy: Floats, width: float, height: float) -> Floats:
    """Move every corner to the nearest point of the image; a box wholly outside becomes a line on its border."""
    limits = np.array([width, height, width, height], dtype=boxes_xyxy.dtype)
    return np.clip(boxes_xyxy, 0, limits)


def area(boxes_xyxy: Floats) -> Floats:
    """(..., 4) -> (...); a box whose corners are swapped has area 0."""
    sides = np.clip(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def iou(a_xyxy: Floats, b_xyxy: Floats) -> Floats:
    """Intersection over union of pairs, (..., 4) x (..., 4) -> (...) in 0..1; 0 if both boxes are empty."""
    low = np.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = np.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = area(np.concatenate([low, high], axis=-1))
    union = area(a_xyxy) + area(b_xyxy) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
