"""Training on conversations about images, as in LLaVA and VPP-SFT: a row is a conversation, every answer is trained.

The prompt is that of VPP-LLaVA's own training. Sample k depends only on the seed and k, so a resumed run sees the same
data as an uninterrupted one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from referent.core.images import ImageError, Picture
from referent.core.prompts import EXPRESSION_MARK, IMAGE_MARK, PromptEncoder
from referent.core.sources import encoded
from referent.core.spec import ModelSpec
from referent.data.readers.conversations import Dialogue, read_dialogues
from referent.data.records import Rejected
from referent.modeling.importers.vpp_llava import TEMPLATE
from referent.training.encoding import TrainingRow, pictures
from referent.training.record_stream import DataError, order_of

MAX_TOKENS = 2048  # of a row; what lies beyond is cut off
START, REST = TEMPLATE.split(IMAGE_MARK)  # up to the first question, and behind the image
END = " ASSISTANT:"  # of a question
NEXT = "USER: "  # before each further question
# the first question of a conversation goes on with this sentence, without a full stop before it
AXES_HINT = REST.partition(f"{EXPRESSION_MARK}.")[2].removesuffix(END)
UNSEEN = Image.new("RGB", (1, 1))  # where there is no image: its features enter nowhere


class DialogueStream(Dataset[TrainingRow]):
    """Map-style dataset of `samples` rows: epoch after epoch of the same conversations, each in its own seeded order.

    T tokens, A of them answers: what `referent.training.encoding.pictures` gives; input_ids, segment_ids (T,): 0 up to
    the image, 1 behind it; loc_positions and labels (A,): the positions that predict the answers' tokens, and those.
    `left_out` counts, by reason, the rows that cannot be trained on.
    """

    def __init__(
        self,
        dialogues: Iterable[Dialogue | Rejected],
        images: Path,
        spec: ModelSpec,
        encoder: PromptEncoder,
        seed: int,
        end_token_id: int,
    ) -> None:
        if spec.prompt.template != TEMPLATE:
            raise DataError(f"conversations are trained with VPP-LLaVA's prompt, not with {spec.prompt.template!r}")
        self._images, self._spec, self._encoder, self._seed, self._end = images, spec, encoder, seed, end_token_id
        self.left_out: Counter[str] = Counter()
        self.items: list[Dialogue] = []
        for item in dialogues:
            fault = item.reason if isinstance(item, Rejected) else self._fault(item)
            if fault is None and isinstance(item, Dialogue):
                self.items.append(item)
            else:
                self.left_out[str(fault)] += 1
        if not self.items:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self.left_out.most_common(3))
            raise DataError(f"no conversation can be trained on: {reasons or 'there is none'}")
        self.samples = len(self.items)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> TrainingRow:
        epoch, position = divmod(index, len(self.items))
        dialogue = self.items[order_of(self._seed, epoch, len(self.items))[position]]
        ids, labels = self._tokens(dialogue)
        behind = len(self._encoder.prefix) if dialogue.image is not None else 0
        positions = np.array(sorted(labels))
        return {
            **pictures(self._picture(dialogue), self._spec),
            "input_ids": np.array(ids, np.int64),
            "segment_ids": (np.arange(len(ids)) >= behind).astype(np.int64),
            "loc_positions": positions,
            "labels": np.array([labels[position] for position in positions.tolist()], np.int64),
        }

    def _tokens(self, dialogue: Dialogue) -> tuple[list[int], dict[int, int]]:
        """A row's ids, and the token to be predicted at each position that predicts an answer's. Raises ValueError for
        an answer that the tokenizer cannot spell."""
        encoder = self._encoder
        bos = self._spec.prompt.bos_token_id
        ids = encoder.prefix if dialogue.image is not None else [] if bos is None else [bos]
        labels: dict[int, int] = {}
        for number, (question, answer) in enumerate(dialogue.exchanges):
            if number:
                asked = encoder.words(f"{NEXT}{question}{END}")
            elif dialogue.image is not None:
                asked = encoder.words(f"\n{question}{AXES_HINT}{END}", behind_image=True)
            else:
                asked = encoder.words(f"{START}{question}{AXES_HINT}{END}")
            written = [*encoder.answer(answer), self._end]
            ids = ids + asked
            labels |= {len(ids) - 1 + place: token for place, token in enumerate(written)}
            ids = ids + written
        kept = ids[: min(MAX_TOKENS, len(ids) - 1)]  # nothing is predicted behind the last token
        return kept, {position: token for position, token in labels.items() if position < len(kept)}

    def _fault(self, dialogue: Dialogue) -> str | None:
        try:
            return None if self._tokens(dialogue)[1] else f"no answer within {MAX_TOKENS} tokens"
        except ValueError:
            return "the tokenizer cannot spell an answer"

    def _picture(self, dialogue: Dialogue) -> Image.Image | Picture:
        if dialogue.image is None:
            return UNSEEN
        try:
            return self._spec.image.decode(encoded(self._images / dialogue.image))
        except (OSError, ImageError) as error:
            raise DataError(f"image {dialogue.image} of {dialogue.where}: {error}; leave its row out") from error


def load_dialogues(file: Path, images: Path) -> Sequence[Dialogue | Rejected]:
    """Raises `DataError`."""
    try:
        return list(read_dialogues(file, images))
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error
