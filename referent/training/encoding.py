"""Rows of training tensors: one image, and as many of its expressions as a row takes, packed as they are served."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from referent.core.boxes import Bools, Box, Floats, cxcywh_to_xyxy, xyxy_to_cxcywh
from referent.core.frame import Frame
from referent.core.images import Picture
from referent.core.packing import PADDING_SEGMENT, Bucket, pack
from referent.core.processor import detector_inputs
from referent.core.prompts import PromptEncoder
from referent.core.spec import ModelSpec
from referent.training.losses import NO_LABEL

MIDDLE = 0.6  # of a box's sides: tokens there show its object
TrainingRow = dict[str, npt.NDArray[np.generic]]


def encode_row(
    image: Image.Image | Picture,
    suffixes: Sequence[Sequence[int]],
    boxes_xyxy: Sequence[Sequence[Box]],
    spec: ModelSpec,
    encoder: PromptEncoder,
    row: Bucket,
) -> tuple[TrainingRow, Frame]:
    """An image and the suffixes of its expressions, each with the boxes of its objects in pixels: none if absent.

    T tokens, N slots: the tensors of `pictures`; input_ids, segment_ids (T,); loc_positions (N,); used (N,) bool: slots
    with an expression; present (N,) bool: with an object; single (N,) bool: with one alone, and boxes (N, 4) its
    cx,cy,w,h of the box frame. Suffixes that the row cannot take and those without an entry in `boxes_xyxy` are not
    used.
    """
    packed = pack(encoder.prefix, suffixes, [row], spec.prompt.pad_token_id)[0]
    frame = spec.frame(image.size)
    used, present, single = np.zeros((3, row.expressions), bool)
    targets = np.full((row.expressions, 4), 0.5, np.float32)
    for slot, boxes in enumerate(boxes_xyxy[: packed.expressions]):
        used[slot], present[slot], single[slot] = True, bool(boxes), len(boxes) == 1
        if single[slot]:
            targets[slot] = frame_boxes(boxes, frame)[0]
    sample: TrainingRow = {
        **pictures(image, spec),
        "input_ids": packed.input_ids,
        "segment_ids": packed.segment_ids,
        "loc_positions": packed.loc_positions,
        "used": used,
        "present": present,
        "single": single,
        "boxes": targets,
    }
    return sample, frame


def answer_labels(row: TrainingRow, answers: Sequence[Sequence[int]], size: int) -> TrainingRow:
    """What a row that holds answers in text is trained on, `size` tokens at most: loc_positions (size,) that predict
    the tokens of the answers, and labels (size,), `NO_LABEL` where unused.

    In the row each expression ends with its answer without the last token, which is an end.
    """
    positions, labels = np.zeros(size, np.int64), np.full(size, NO_LABEL)
    first = 0
    for used, end, answer in zip(row["used"], row["loc_positions"].tolist(), answers, strict=False):
        if used:
            chosen = slice(first, first + len(answer))
            positions[chosen] = np.arange(end - len(answer) + 1, end + 1)
            labels[chosen] = answer
            first += len(answer)
    return {"loc_positions": positions, "labels": labels}


def pictures(image: Image.Image | Picture, spec: ModelSpec) -> TrainingRow:
    """image (S, S, 3) uint8, and what a detector is given beside it, of a model that has one."""
    return {"image": spec.image.apply(image), **detector_inputs(spec, image)}


def frame_boxes(boxes_xyxy: Sequence[Box], frame: Frame) -> Floats:
    """(M, 4) pixels of the image -> cx,cy,w,h in 0..1 of the box frame, clipped to it."""
    shares = frame.boxes_from_image(np.array(boxes_xyxy, np.float32).reshape(-1, 4))
    return xyxy_to_cxcywh(np.clip(cxcywh_to_xyxy(shares), 0, 1)).astype(np.float32)


def token_targets(boxes: Sequence[Floats], masks: Sequence[Bools | None], grid: int, frame: Frame) -> TrainingRow:
    """What K = grid**2 image tokens show, from the boxes (T, 4) cx,cy,w,h of the frame of each of N expressions, and a
    mask (H, W) in pixels of the image where there is one.

    points (N, K) bool: tokens whose centre is in the mask, or in the middle of a box; unsure (N, K) bool: the rest of a
    box without a mask; patch_shown (K,) bool: tokens of any of these objects, and patch_boxes (K, 4) its box: of the
    smallest, where there are several.
    """
    steps = (np.arange(grid) + 0.5) / grid
    centres = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)  # (K, 2) x,y
    points, unsure = np.zeros((2, len(boxes), grid * grid), bool)
    patch_boxes, areas = np.full((grid * grid, 4), 0.5, np.float32), np.full(grid * grid, np.inf)
    for slot, (rows, mask) in enumerate(zip(boxes, masks, strict=True)):
        for box in rows:
            offset = np.abs(centres - box[:2]) / np.maximum(box[2:] / 2, 1e-6)  # 0 in the middle, 1 on the border
            inside = (offset < 1).all(1)
            middle = (
                (offset < MIDDLE).all(1) if mask is None else inside & _in_mask(mask, frame.points_to_image(centres))
            )
            if not middle.any():  # a box smaller than a token
                column, row = np.clip((box[:2] * grid).astype(int), 0, grid - 1)
                middle[row * grid + column] = True
            points[slot] |= middle
            unsure[slot] |= inside & (mask is None)
            smaller = middle & (box[2] * box[3] < areas)
            areas[smaller], patch_boxes[smaller] = box[2] * box[3], box
    shown = np.asarray(points.any(0))
    return {"points": points, "unsure": unsure & ~points, "patch_shown": shown, "patch_boxes": patch_boxes}


def _in_mask(mask: Bools, points_xy: Floats) -> Bools:
    """Whether each pixel (M, 2) is set; those beside the image are not."""
    x, y = np.floor(points_xy).astype(int).T
    height, width = mask.shape
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.asarray(within & mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)])


def collate(rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
    """Stack rows into a batch."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def collate_trimmed(rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
    """Stack rows into a batch, without the padding that all of them share."""
    batch = collate(rows)
    tokens = int((batch["segment_ids"] != PADDING_SEGMENT).sum(1).max())
    return batch | {name: batch[name][:, :tokens] for name in ("input_ids", "segment_ids")}


def collate_answers(rows: list[TrainingRow]) -> dict[str, torch.Tensor]:
    """Stack rows of different lengths into a batch, padded on the right."""
    padding = {"input_ids": 0, "segment_ids": PADDING_SEGMENT, "loc_positions": 0, "labels": NO_LABEL}
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0] if name not in padding}
    for name, value in padding.items():
        tensors = [torch.from_numpy(row[name]) for row in rows]
        batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
    return batch
