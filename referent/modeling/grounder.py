"""Grounding with a PyTorch model in this process: what evaluation uses, and what the served answer is held against."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from referent.core.images import Picture
from referent.core.processor import Found, Inputs, Processor
from referent.core.prompts import PromptEncoder
from referent.core.text_boxes import parse_box
from referent.modeling.checkpoint import CheckpointSpec, load_checkpoint, load_checkpoint_encoder
from referent.modeling.grounding import GroundingModel

MAX_NEW_TOKENS = 50  # of an answer in text, as visual-grounding-api's


class ModelGrounder(ABC):
    """Image and expressions -> boxes, with a model in eval mode."""

    def __init__(self, model: GroundingModel, processor: Processor) -> None:
        self._model = model
        self._processor = processor

    def decode(self, data: bytes) -> Picture:
        """An image file as the model needs it: just as the service does it. Raises `ImageError`."""
        return self._processor.spec.image.decode(data)

    def ground(self, image: Image.Image | Picture, expressions: Sequence[str]) -> list[Found]:
        """RGB image -> one result an expression, in order."""
        return self.ground_batch([image], [expressions])[0]

    @abstractmethod
    def ground_batch(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[list[Found]]:
        """Several RGB images at once, each with its expressions."""

    def _preprocess(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[Inputs]:
        return [self._processor.preprocess(*pair) for pair in zip(images, expressions, strict=True)]


class TorchGrounder(ModelGrounder):
    """Reads boxes with the head; rows of one shape share a pass."""

    @torch.inference_mode()
    def ground_batch(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[list[Found]]:
        """Several RGB images at once, each with its expressions; rows of one shape share a pass."""
        prepared = [self._processor.preprocess(*pair) for pair in zip(images, expressions, strict=True)]
        features = _encode_images(self._model, prepared)
        rows = [(owner, row) for owner, inputs in enumerate(prepared) for row in inputs.rows]
        shapes = defaultdict(list)
        for index, (_, row) in enumerate(rows):
            shapes[len(row.input_ids), len(row.loc_positions)].append(index)
        boxes, scores = [np.empty(0)] * len(rows), [np.empty(0)] * len(rows)
        for indices in shapes.values():
            packed = [rows[index][1] for index in indices]
            tensors = (
                torch.from_numpy(np.stack(arrays)).to(features.device)
                for arrays in zip(*((row.input_ids, row.segment_ids, row.loc_positions) for row in packed), strict=True)
            )
            hidden, _ = self._model.read_expressions(*tensors, features[[rows[index][0] for index in indices]])
            batch_boxes, logits = self._model.box_head(hidden)
            for slot, (index, row) in enumerate(zip(indices, packed, strict=True)):
                boxes[index] = batch_boxes[slot, : row.expressions].cpu().numpy()
                if logits is not None:
                    scores[index] = logits[slot, : row.expressions].sigmoid().cpu().numpy()
        has_scores = self._model.box_head.score is not None
        results = []
        for inputs in prepared:
            count = len(inputs.rows)
            own_boxes, boxes = boxes[:count], boxes[count:]
            own_scores, scores = scores[:count], scores[count:]
            results.append(
                self._processor.postprocess(
                    inputs, np.concatenate(own_boxes), np.concatenate(own_scores) if has_scores else None
                )
            )
        return results


class TextGrounder(ModelGrounder):
    """Has the boxes written as text, greedily.

    An answer that is no box gives a box of NaN: an invalid prediction. There are no scores.
    """

    def __init__(self, model: GroundingModel, processor: Processor, encoder: PromptEncoder) -> None:
        super().__init__(model, processor)
        self._encoder = encoder

    def ground_batch(
        self, images: Sequence[Image.Image | Picture], expressions: Sequence[Sequence[str]]
    ) -> list[list[Found]]:
        prepared = self._preprocess(images, expressions)
        answers = iter(self.answer(prepared))
        results = []
        for inputs in prepared:
            boxes = [parse_box(next(answers)) or (np.nan,) * 4 for _ in inputs.expressions]
            results.append(self._processor.postprocess(inputs, np.array(boxes), None))
        return results

    @torch.inference_mode()
    def answer(self, prepared: Sequence[Inputs]) -> list[str]:
        """What the model says to each expression of each image, in order."""
        features = _encode_images(self._model, prepared)
        pairs = [(owner, text) for owner, inputs in enumerate(prepared) for text in inputs.expressions]
        prompts = [self._encoder.prefix + self._encoder.suffix(text) for _, text in pairs]
        length = max(map(len, prompts))
        padding = self._encoder.prompt.pad_token_id
        ids = [[padding] * (length - len(prompt)) + prompt for prompt in prompts]  # on the left: answers follow at once
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        llava = self._model.base
        embeddings = self._model.embed(
            torch.tensor(ids, device=features.device), features[[owner for owner, _ in pairs]]
        )
        end = llava.config.text_config.eos_token_id
        generated = llava.generate(
            inputs_embeds=embeddings, attention_mask=torch.tensor(mask, device=features.device), do_sample=False,
            num_beams=1, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=end, pad_token_id=padding,
        )  # fmt: skip
        return [self._encoder.decode(row) for row in generated.tolist()]


def _encode_images(model: GroundingModel, prepared: Sequence[Inputs]) -> torch.Tensor:
    """(B, K, D) features of the images."""
    pixels = torch.from_numpy(np.stack([inputs.image for inputs in prepared]))
    return model.encode_image(pixels.to(model.mean.device))


def make_grounder(model: GroundingModel, spec: CheckpointSpec, encoder: PromptEncoder) -> ModelGrounder:
    """The grounder that the checkpoint's kind of answer needs."""
    processor = Processor(spec, encoder)
    return TextGrounder(model, processor, encoder) if spec.answer == "text" else TorchGrounder(model, processor)


def load_grounder(directory: Path, device: str | None = None, dtype: torch.dtype = torch.float32) -> ModelGrounder:
    """A checkpoint of either kind, its adapter merged as it is served; on the GPU where there is one.

    Raises `referent.modeling.checkpoint.CheckpointError`.
    """
    model, spec = load_checkpoint(directory, dtype)
    if isinstance(model.llava, PeftModel):
        model.llava = model.llava.merge_and_unload()
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return make_grounder(model, spec, load_checkpoint_encoder(directory, spec))
