"""Grounding with a PyTorch model in this process, for evaluation and as the reference for served answers."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from referent.core.answers import Answer
from referent.core.boxes import Floats, clip_xyxy
from referent.core.contract import DETECTOR_INPUTS, IMAGE, INPUT_IDS, LOC_POSITIONS, SEGMENT_IDS
from referent.core.images import Picture
from referent.core.kind import Arrays, Prepared
from referent.core.processor import Processor
from referent.core.prompts import PromptEncoder
from referent.generation.engine import Engine
from referent.generation.outputs import outputs_of
from referent.generation.questions import columns_of, load_tokenizer, plan, question_of
from referent.kinds import head, kind_of, referents
from referent.kinds.at_loc import joined
from referent.kinds.generator import generation_of
from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint, load_checkpoint_encoder
from referent.modeling.grounding import GroundingModel
from referent.modeling.text_decoder import TorchDecoder

MAX_SLOTS = 8  # rows at a time of a model that answers in text


class ModelGrounder(ABC):
    """Image and expressions -> answers, with a model in eval mode."""

    def __init__(self, model: GroundingModel, spec: CheckpointSpec, encoder: PromptEncoder) -> None:
        self._model, self._spec, self._encoder = model, spec, encoder

    @property
    def spec(self) -> CheckpointSpec:
        return self._spec

    def decode(self, data: bytes) -> Picture:
        """An image file, decoded as the service does it. Raises `ImageError`."""
        return self._spec.image.decode(data)

    def ground(self, image: Image.Image | Picture, expressions: Sequence[str]) -> list[Answer]:
        """RGB image -> an answer for each expression, in order."""
        return self.ground_batch([image], [expressions])[0]

    @abstractmethod
    def ground_batch(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[list[Answer]]:
        """Several RGB images at once, each with its expressions."""


class LocGrounder(ModelGrounder):
    """Reads an answer at each [LOC]; rows of one shape share a pass."""

    def __init__(self, model: GroundingModel, spec: CheckpointSpec, encoder: PromptEncoder) -> None:
        super().__init__(model, spec, encoder)
        self._processor = Processor(spec, encoder, kind_of(spec))

    def ground_batch(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[list[Answer]]:
        return [self._processor.answers(*request) for request in self._outputs(images, expressions)]

    @torch.inference_mode()
    def _outputs(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[tuple[Prepared, list[Arrays]]]:
        """The requests and the outputs of their inferences."""
        pairs = zip(images, expressions, strict=True)
        prepared = [self._processor.prepare_picture(picture, asked) for picture, asked in pairs]
        rows = [arrays for request in prepared for arrays in request.inferences]
        owners = [index for index, request in enumerate(prepared) for _ in request.inferences]
        features = _encode_images(self._model, prepared)
        shapes = defaultdict(list)
        for index, arrays in enumerate(rows):
            shapes[arrays[INPUT_IDS.name].shape, arrays[LOC_POSITIONS.name].shape].append(index)
        outputs: list[Arrays] = [{} for _ in rows]
        for indices in shapes.values():
            tensors = (
                torch.from_numpy(np.concatenate([rows[index][tensor.name] for index in indices])).to(features.device)
                for tensor in (INPUT_IDS, SEGMENT_IDS, LOC_POSITIONS)
            )
            read = self._read(*tensors, features[[owners[index] for index in indices]])
            for slot, index in enumerate(indices):
                outputs[index] = {name: values[slot : slot + 1].cpu().numpy() for name, values in read.items()}
        given = iter(outputs)
        return [(request, [next(given) for _ in request.inferences]) for request in prepared]

    @abstractmethod
    def _read(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The kind's outputs by name, of what `GroundingModel.read_expressions` takes."""


class HeadGrounder(LocGrounder):
    """Reads one box with the box head."""

    def _read(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden, _ = self._model.read_expressions(*tensors)
        boxes, logits = self._model.box_head(hidden)
        scores = {} if logits is None else {head.SCORES.name: logits.sigmoid()}
        return {head.BOXES.name: boxes} | scores


class Candidates(NamedTuple):
    """All candidates of a referent head for an expression, also those with low scores."""

    boxes_xyxy: Floats  # (P, 4) pixels of the image, clipped to it
    scores: Floats  # (P,), best first
    presence: float


class ReferentGrounder(LocGrounder):
    """Reads every referent with the referent head."""

    def candidates(self, image: Image.Image | Picture, expressions: Sequence[str]) -> list[Candidates]:
        """The candidates for each expression, in order; thresholds and calibration are chosen from them."""
        ((prepared, outputs),) = self._outputs([image], [expressions])
        found = (
            joined(prepared.inferences, outputs, tensor)
            for tensor in (referents.BOXES, referents.SCORES, referents.PRESENCE)
        )
        frame = prepared.frame
        return [
            Candidates(
                clip_xyxy(frame.boxes_to_image(boxes[scores > 0]), *frame.image_size),
                scores[scores > 0],
                float(presence),
            )
            for boxes, scores, presence in zip(*found, strict=True)
        ]

    def _read(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden, _, image_states = self._model.read_states(*tensors)
        found = self._model.referent_head.merge(self._model.referent_head(hidden, image_states))
        return dict(zip((tensor.name for tensor in referents.REFERENT_HEAD.outputs), found, strict=True))


class TextGrounder(ModelGrounder):
    """Writes the answers under the model's grammar, as the service does it."""

    def __init__(self, model: GroundingModel, spec: CheckpointSpec, encoder: PromptEncoder) -> None:
        super().__init__(model, spec, encoder)
        self._processor, self._generation = Processor(spec, encoder, kind_of(spec)), generation_of(spec)
        rows = model.base.config.text_config.vocab_size
        self._tokenizer = load_tokenizer(encoder.tokenizer_json, rows, self._generation.eos_token_id)

    @torch.inference_mode()
    def ground_batch(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[list[Answer]]:
        pairs = zip(images, expressions, strict=True)
        prepared = [self._processor.prepare_picture(picture, asked) for picture, asked in pairs]
        features = _encode_images(self._model, prepared)
        columns = columns_of(self._spec)
        planned = [
            [plan(question_of(arrays, image[None]), self._tokenizer, self._generation, columns)
             for arrays in request.inferences]
            for request, image in zip(prepared, features, strict=True)
        ]  # fmt: skip
        waiting = [row for request in planned for rows in request for row in rows]
        engine = Engine(TorchDecoder(self._model, min(len(waiting), MAX_SLOTS), columns))
        while waiting or engine.active:
            while waiting and not engine.full:
                engine.admit(waiting.pop(0))
            engine.step()
            if engine.errors:
                raise engine.errors[0]
        return [
            self._processor.answers(request, [outputs_of(rows, self._generation.grammar) for rows in planned_rows])
            for request, planned_rows in zip(prepared, planned, strict=True)
        ]


def _encode_images(model: GroundingModel, prepared: Sequence[Prepared]) -> torch.Tensor:
    """(B, K, D) features of the requests' images."""
    names = [tensor.name for tensor in (IMAGE, *DETECTOR_INPUTS) if tensor.name in prepared[0].inferences[0]]
    pictures = (np.concatenate([request.inferences[0][name] for request in prepared]) for name in names)
    return model.encode_image(*(torch.from_numpy(array).to(model.mean.device) for array in pictures))


GROUNDERS: dict[str, type[ModelGrounder]] = {  # by kind
    "head": HeadGrounder,
    "referents": ReferentGrounder,
    "generator": TextGrounder,
}


def make_grounder(model: GroundingModel, spec: CheckpointSpec, encoder: PromptEncoder) -> ModelGrounder:
    """The grounder that the checkpoint's kind needs."""
    return GROUNDERS[spec.kind](model, spec, encoder)


def load_grounder(directory: Path, device: str | None = None) -> ModelGrounder:
    """A checkpoint of any kind, its adapter merged as it is served; on the GPU if there is one.

    Raises `referent.modeling.checkpoint.CheckpointError`.
    """
    model, spec = load_checkpoint(directory)
    if isinstance(model.llava, PeftModel):
        model.llava = model.llava.merge_and_unload()
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return make_grounder(model, spec, load_checkpoint_encoder(directory, spec))
