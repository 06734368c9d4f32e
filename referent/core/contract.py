"""The Triton contract's vocabulary: tensors and steps, their dtypes and shapes. Depends on nothing.

A served model NAME is an ensemble of its kind's steps, NAME_<suffix>. Shapes leave out the batch; S is the side of the
image, R that of the detector's image, K the image's tokens, T the tokens of a row, N its expression slots, D the
hidden size. Kinds may add letters.
"""

from collections.abc import Mapping
from typing import NamedTuple

DIGEST_PARAMETER = "digest"  # of the bundle, in the ensemble's config


class Tensor(NamedTuple):
    """A tensor of the contract. `dtype` is Triton's name for it; None: the bundle's dtype (FP32 or FP16)."""

    name: str
    dtype: str | None
    shape: tuple[str, ...]


class Step(NamedTuple):
    """One model of an ensemble. `outputs` has every output that it can give, also those that some models lack."""

    suffix: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    backend: str = "onnxruntime"
    batches: bool = True  # Triton may join requests of one shape for it


IMAGE = Tensor("image", "UINT8", ("S", "S", "3"))  # RGB after the model's image transform
IMAGE_FEATURES = Tensor("image_features", None, ("K", "D"))
DETECTOR_IMAGE = Tensor("detector_image", "UINT8", ("R", "R", "3"))  # RGB after the transform of the second picture
DETECTOR_FRAME = Tensor("detector_frame", "INT32", ("4",))  # x0, y0, x1, y1 of the picture in DETECTOR_IMAGE
DETECTOR_INPUTS = (DETECTOR_IMAGE, DETECTOR_FRAME)  # of models with visual position prompts
VISION_ENCODER = Step("vision_encoder", (IMAGE,), (IMAGE_FEATURES,))
PROMPTED_ENCODER = VISION_ENCODER._replace(inputs=(IMAGE, *DETECTOR_INPUTS))

INPUT_IDS = Tensor("input_ids", "INT64", ("T",))
SEGMENT_IDS = Tensor("segment_ids", "INT64", ("T",))  # 0 prefix, 1..N expressions, -1 padding
LOC_POSITIONS = Tensor("loc_positions", "INT64", ("N",))  # index of each expression's [LOC]; unused slots 0


def part_name(model: str, step: Step) -> str:
    """Triton's name for one step of a served model."""
    return f"{model}_{step.suffix}"


def dtype_of(tensor: Tensor, bundle_dtype: str) -> str:
    """Triton's dtype for a tensor, with a bundle of "fp32" or "fp16"."""
    return tensor.dtype or bundle_dtype.upper()


def dims_of(tensor: Tensor, sizes: Mapping[str, int]) -> list[int]:
    """Dimensions as in config.pbtxt: numbers for letters in `sizes`, -1 for those that vary."""
    return [int(letter) if letter.isdigit() else sizes.get(letter, -1) for letter in tensor.shape]
