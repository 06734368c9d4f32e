"""Grounding with a PyTorch model in this process: what evaluation uses, and what the served answer is held against."""

from collections.abc import Sequence

import torch
from PIL import Image

from referent.modeling.grounding import GroundingModel
from referent.processor import Found, Processor


class TorchGrounder:
    """Image and expressions -> boxes, with a model in eval mode."""

    def __init__(self, model: GroundingModel, processor: Processor) -> None:
        self._model = model
        self._processor = processor

    @torch.inference_mode()
    def ground(self, image: Image.Image, expressions: Sequence[str]) -> list[Found]:
        """RGB image -> one result an expression, in order."""
        inputs = self._processor.preprocess(image, expressions)
        pixels = torch.from_numpy(inputs.image)[None]
        features = self._model.encode_image(pixels)
        boxes, scores = [], []
        for row in inputs.rows:
            tensors = (torch.from_numpy(t)[None] for t in (row.input_ids, row.segment_ids, row.loc_positions))
            hidden, _ = self._model.read_expressions(*tensors, features)
            row_boxes, row_scores = self._model.box_head(hidden)
            boxes.append(row_boxes[0, : row.expressions])
            if row_scores is not None:
                scores.append(row_scores[0, : row.expressions].sigmoid())
        return self._processor.postprocess(
            inputs, torch.cat(boxes).numpy(), torch.cat(scores).numpy() if scores else None
        )
