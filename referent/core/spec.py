"""What a model needs besides its weights: how to prepare its inputs and read its outputs."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from referent.core.frame import Frame
from referent.core.grammar import Generation
from referent.core.packing import Bucket
from referent.core.prompts import Prompt
from referent.core.transform import ImageTransform


class ModelSpec(BaseModel):
    """Travels from the checkpoint into the served bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field("head", description="which module of `referent.kinds` knows its tensors")
    image: ImageTransform
    detector_image: ImageTransform | None = Field(
        default=None, description="how the second picture is made, for a model with visual position prompts"
    )
    image_tokens: int = Field(gt=0)
    box_frame: Literal["transformed", "image"] = Field(
        description="what coordinates are shares of: the square the model sees, or the whole image"
    )
    prompt: Prompt
    buckets: tuple[Bucket, ...] = Field(min_length=1, description="(tokens, expressions), ascending in both")
    present_threshold: float | None = Field(description="lowest score of an object that is there; None without scores")
    referent_threshold: float | None = Field(
        default=None, description="lowest score of a referent, for a model that gives each referent its own score"
    )
    generation: Generation | None = Field(default=None, description="how it writes, if its answers are text")
    knows: str | None = Field(default=None, description="what it knows, in words for people")
    evaluation: dict[str, Any] = Field(default_factory=dict, description="figures on held-out data, by set")
    training: dict[str, Any] = Field(default_factory=dict, description="where the weights come from")

    @field_validator("buckets")
    @classmethod
    def _ascend(cls, buckets: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
        if list(buckets) != sorted(buckets) or [b.expressions for b in buckets] != sorted(
            b.expressions for b in buckets
        ):
            raise ValueError(f"buckets {buckets} must ascend in tokens and in expressions")
        return buckets

    def frame(self, image_size: tuple[int, int]) -> Frame:
        """What the model's coordinates are shares of, for an image of (width, height)."""
        if self.box_frame == "image":
            return Frame(image_size, (1, 1), (0, 0), image_size)
        return self.image.frame(image_size)
