"""What a model answers to an expression. Service, SDK, drawing, page and evaluation all use this one type."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from referent.core.boxes import Box, Floats, clip_xyxy, xyxy_to_cxcywh

Point = Annotated[
    tuple[float, float],
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
]
FinishReason = Literal["stop", "length", "error"]
Gives = Literal["boxes", "points", "boxes or points"]  # what a model's referents have


class Referent(BaseModel):
    """One thing that an expression refers to. A model gives boxes or points; what it does not give is null."""

    model_config = ConfigDict(frozen=True)

    expression: str
    box_xyxy: Box | None = Field(description="pixels of the image as shown, clipped to it")
    box_cxcywh_normalized: Box | None = Field(description="0..1 of the whole image")
    point_xy: Point | None = Field(description="pixels of the image as shown")
    score: float | None = Field(description="predicted IoU, or probability; null for models without scores")
    present: bool | None = Field(description="whether it is there; null for models without scores")

    @classmethod
    def of_box(
        cls,
        expression: str,
        box_xyxy: Floats,
        image_size: tuple[int, int],
        score: float | None = None,
        present: bool | None = None,
    ) -> Self:
        """From a box (4,) x1, y1, x2, y2 in pixels, which is clipped to the image of (width, height)."""
        clipped = clip_xyxy(np.asarray(box_xyxy, np.float64), *image_size)
        normalized = xyxy_to_cxcywh(clipped / np.tile(image_size, 2))
        return cls(
            expression=expression,
            box_xyxy=tuple(clipped.tolist()),
            box_cxcywh_normalized=tuple(normalized.tolist()),
            point_xy=None,
            score=score,
            present=present,
        )

    @classmethod
    def of_point(
        cls,
        expression: str,
        point_xy: Floats,
        image_size: tuple[int, int],
        score: float | None = None,
        present: bool | None = None,
    ) -> Self:
        """From a point (2,) x, y in pixels, which is moved into the image of (width, height)."""
        x, y = np.clip(np.asarray(point_xy, np.float64), 0, image_size).tolist()
        return cls(
            expression=expression,
            box_xyxy=None,
            box_cxcywh_normalized=None,
            point_xy=(x, y),
            score=score,
            present=present,
        )


class Answer(Referent):
    """What a model answers to one expression: the best referent's fields, and all referents.

    If nothing is there, `present` is false and `referents` is empty; kind `head` still gives its best guess.
    """

    referents: tuple[Referent, ...] = Field(description="all of them, best first; empty if nothing is there")
    text: str | None = Field(
        default=None,
        exclude_if=lambda text: text is None,
        description="what a model of kind `generator` wrote; other models leave it out",
    )
    finish_reason: FinishReason | None = Field(
        default=None,
        exclude_if=lambda reason: reason is None,
        description="why writing ended: stop; length, the answer was cut; error, this expression's pass failed",
    )
    heatmap: tuple[tuple[float, ...], ...] | None = Field(
        default=None,
        exclude_if=lambda heatmap: heatmap is None,
        description="how likely each part of `heatmap_xyxy` is meant, 0..1, rows from the top; only if asked for",
    )
    heatmap_xyxy: Box | None = Field(
        default=None,
        exclude_if=lambda box: box is None,
        description="what the heat map covers, in pixels of the image as shown; it may reach beyond the image",
    )

    @classmethod
    def of(
        cls,
        expression: str,
        referents: Sequence[Referent],
        *,
        present: bool | None,
        score: float | None = None,
        guess: Referent | None = None,
        text: str | None = None,
        finish_reason: FinishReason | None = None,
    ) -> Self:
        """From the referents, best first. If there are none, box, point and score come from `guess`, if given."""
        best = referents[0] if referents else guess
        return cls(
            expression=expression,
            box_xyxy=best.box_xyxy if best else None,
            box_cxcywh_normalized=best.box_cxcywh_normalized if best else None,
            point_xy=best.point_xy if best else None,
            score=best.score if best else score,
            present=present,
            referents=tuple(referents),
            text=text,
            finish_reason=finish_reason,
        )
