"""Training on points: a row is an image, a label in a varying question, and the answer in text.

Sample k depends only on the seed and k, so a resumed run sees the same data as an uninterrupted one.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from referent.core.grammar import MAX_INSTANCES, PointGrammar
from referent.core.prompts import IMAGE_MARK, PromptEncoder, clean_expression
from referent.core.spec import ModelSpec
from referent.data.records import Record
from referent.training.encoding import TrainingRow, pictures
from referent.training.record_stream import DataError, open_image, order_of

LOG = logging.getLogger(__name__)
SERVED_SHARE = 0.5  # of samples that are asked in the words that the model is served with
QUESTIONS = (
    "Point at {expression}", "Point out {expression}.", "Point to every {expression}", "Point to all {expression}",
    "Where is {expression}?", "Where can I see {expression}?", "Find {expression}.", "Find all {expression}",
    "Show me {expression}", "Show me where {expression} is.", "Locate {expression}", "Mark {expression} with points.",
    "Which points show {expression}?", "{expression}",
)  # fmt: skip


class PointStream(Dataset[TrainingRow]):
    """Map-style dataset of `samples` rows: epoch after epoch of the same records, each in its own seeded order.

    T tokens, A of them the answer: image (S, S, 3) uint8; input_ids, segment_ids (T,): 0 the whole prompt, 1 the answer
    without its last token; loc_positions and labels (A,): the positions that predict the answer's tokens, and those.
    A record without points is answered with `none`; those with more points than can be asked for are left out.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: Path,
        spec: ModelSpec,
        encoder: PromptEncoder,
        seed: int,
        end_token_id: int,
    ) -> None:
        self._images, self._spec, self._encoder, self._seed, self._end = images, spec, encoder, seed, end_token_id
        grammar = spec.generation.grammar if spec.generation else None
        if not isinstance(grammar, PointGrammar):
            raise ValueError(f"the model is to write points, not {grammar}")
        self._grammar = grammar
        self.items = [record for record in records if len(record.points or ()) <= MAX_INSTANCES]
        if left_out := len(records) - len(self.items):
            LOG.warning("left out of training: %d records with over %d points", left_out, MAX_INSTANCES)
        if not any(record.points for record in self.items):
            raise DataError(f"no record has between 1 and {MAX_INSTANCES} points: there is nothing to point to")
        self.samples = len(self.items)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> TrainingRow:
        epoch, position = divmod(index, len(self.items))
        record = self.items[order_of(self._seed, epoch, len(self.items))[position]]
        picture = open_image(record, self._images, self._spec.image)
        frame = self._spec.frame((record.width, record.height))
        points = frame.points_from_image(np.array(record.points or (), np.float64).reshape(-1, 2)).tolist()
        prompt = self._encoder.prefix + self._encoder.suffix(record.expression, self._question(index))
        text = self._grammar.write(points, clean_expression(record.expression))
        answer = [*self._encoder.answer(text), self._end]
        return {
            **pictures(picture, self._spec),
            "input_ids": np.array([*prompt, *answer[:-1]], np.int64),
            "segment_ids": np.repeat(np.array([0, 1]), [len(prompt), len(answer) - 1]),
            "loc_positions": np.arange(len(answer)) + len(prompt) - 1,
            "labels": np.array(answer, np.int64),
        }

    def _question(self, index: int) -> str:
        chance = random.Random(f"{self._seed}/question/{index}")
        template = self._spec.prompt.template
        if chance.random() < SERVED_SHARE:
            return template
        words = template.split(IMAGE_MARK)[1]
        before, after = words[: len(words) - len(words.lstrip("\n"))], words[len(words.rstrip("\n")) :]
        return f"{IMAGE_MARK}{before}{chance.choice(QUESTIONS)}{after}"
