"""The Triton contract: models, tensors, dtypes and shapes. Depends on nothing; config.pbtxt is tested against it.

A served model NAME is an ensemble of NAME_vision_encoder, NAME_language_model and NAME_box_head. Shapes leave out the
batch; S is the side of the image, K its tokens, T the tokens of a row, N its expression slots, D the hidden size.
"""

from typing import NamedTuple


class Tensor(NamedTuple):
    """A tensor of the contract. `dtype` is Triton's name for it; None: the bundle's dtype (FP32 or FP16)."""

    name: str
    dtype: str | None
    shape: tuple[str, ...]


class Step(NamedTuple):
    """One model of the ensemble."""

    suffix: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


IMAGE = Tensor("image", "UINT8", ("S", "S", "3"))  # RGB after the model's image transform
INPUT_IDS = Tensor("input_ids", "INT64", ("T",))
SEGMENT_IDS = Tensor("segment_ids", "INT64", ("T",))  # 0 prefix, 1..N expressions, -1 padding
LOC_POSITIONS = Tensor("loc_positions", "INT64", ("N",))  # index of each expression's [LOC]; unused slots 0
IMAGE_FEATURES = Tensor("image_features", None, ("K", "D"))
HIDDEN_STATES = Tensor("hidden_states", None, ("N", "D"))
BOXES = Tensor("boxes", "FP32", ("N", "4"))  # cx,cy,w,h in 0..1 of the bundle's box frame
SCORES = Tensor("scores", "FP32", ("N",))  # predicted IoU; absent from models trained without it

VISION_ENCODER = Step("vision_encoder", (IMAGE,), (IMAGE_FEATURES,))
LANGUAGE_MODEL = Step("language_model", (INPUT_IDS, SEGMENT_IDS, LOC_POSITIONS, IMAGE_FEATURES), (HIDDEN_STATES,))
BOX_HEAD = Step("box_head", (HIDDEN_STATES,), (BOXES, SCORES))
STEPS = (VISION_ENCODER, LANGUAGE_MODEL, BOX_HEAD)
ENSEMBLE_INPUTS = (IMAGE, INPUT_IDS, SEGMENT_IDS, LOC_POSITIONS)
ENSEMBLE_OUTPUTS = (BOXES, SCORES)

DIGEST_PARAMETER = "digest"  # of the bundle, in the ensemble's config


def part_name(model: str, step: Step) -> str:
    """Triton's name for one step of a served model."""
    return f"{model}_{step.suffix}"


def dtype_of(tensor: Tensor, bundle_dtype: str) -> str:
    """Triton's dtype for a tensor, with a bundle of "fp32" or "fp16"."""
    return tensor.dtype or bundle_dtype.upper()


def dims_of(tensor: Tensor, sizes: dict[str, int]) -> list[int]:
    """Dimensions as in config.pbtxt: numbers for letters in `sizes`, -1 for those that vary."""
    return [int(letter) if letter.isdigit() else sizes.get(letter, -1) for letter in tensor.shape]
