"""Training on records: items of one image with up to N of its expressions, shuffled anew in every epoch.

Sample k depends only on the seed and k, so a resumed run sees the same data as an uninterrupted one.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from referent.core.images import ImageError, Picture
from referent.core.packing import Bucket, pack
from referent.core.prompts import ExpressionError, PromptEncoder
from referent.core.sources import encoded
from referent.core.spec import ModelSpec
from referent.core.text_files import TextFileError
from referent.core.transform import ImageTransform
from referent.data.records import AnnotationError, Record, Rejected, RowError, check_record, read_records
from referent.evaluation.metrics import mask_pixels
from referent.training.encoding import TrainingRow, answer_labels, encode_row, frame_boxes, token_targets


class DataError(RuntimeError):
    """Data that cannot be trained on; the message names the file and the remedy."""


def load_records(
    file: Path, images: Path, limit: int | None = None, seed: int = 0, gives: Literal["boxes", "points"] = "boxes"
) -> list[Record]:
    """Records with what is trained, or of absent objects; with `limit`, a random choice of that many.

    Raises `DataError`.
    """
    if not file.is_file():
        raise DataError(f"{file} is missing: `referent data prepare --split-shares train=.8,val=.2` writes both files")
    records: list[Record] = []
    try:
        for record in read_records(file):
            if isinstance(record, Rejected):
                raise DataError(f"{record.where}: {record.reason}; `referent data prepare` leaves such rows out")
            has, lacks = (record.points, record.boxes) if gives == "boxes" else (record.boxes, record.points)
            if has and not lacks:
                held, wanted = ("points", "box") if gives == "boxes" else ("a box", "points")
                raise DataError(f"record {record.id!r} of {file} has {held} and no {wanted}: {gives} are trained here")
            records.append(check_record(record))
    except RowError as error:
        raise DataError(f"record {record.id!r} of {file}: {error}; `referent data prepare` leaves it out") from error
    except (AnnotationError, TextFileError) as error:
        raise DataError(str(error)) from error
    if not records:
        raise DataError(f"{file} has no records: {file.parent / 'stats.json'} says what was left out")
    missing = next((r.image for r in records if not (images / r.image).is_file()), None)
    if missing is not None:
        raise DataError(f"image {missing} is not in {images}: `referent data prepare` leaves such rows out")
    if limit is None or limit >= len(records):
        return records
    chosen = sorted(random.Random(f"{seed}/limit").sample(range(len(records)), limit))
    return [records[index] for index in chosen]


class RecordStream(Dataset[TrainingRow]):
    """Map-style dataset of `samples` rows: epoch after epoch of the same items, each in its own seeded order.

    With `end_token_id` the model answers in text: every suffix goes on with the box in words, `loc_positions` are the
    positions that predict its tokens and `labels` (as many) those tokens, NO_LABEL where unused. Records without a
    box are then left out. With `grid`, the side of the grid of image tokens, a row has `token_targets` too.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: Path,
        spec: ModelSpec,
        encoder: PromptEncoder,
        row_expressions: int,
        seed: int,
        end_token_id: int | None = None,
        grid: int | None = None,
    ) -> None:
        self._images, self._spec, self._encoder, self._seed = images, spec, encoder, seed
        self._end_token_id, self._grid = end_token_id, grid
        by_image: dict[str, list[Record]] = {}
        for record in records:
            if end_token_id is None or record.box_xyxy is not None:
                by_image.setdefault(record.image, []).append(record)
        if not by_image:
            raise DataError("no record shows its object: there is nothing to answer in text")
        self.items: list[list[Record]] = []
        limit = Bucket(max(bucket.tokens for bucket in spec.buckets), row_expressions)
        tokens = 0
        for about in by_image.values():
            inputs = [self._input(record) for record in about]
            for row in self._pack(about, inputs, limit):
                self.items.append(about[:row])
                tokens = max(tokens, len(encoder.prefix) + sum(map(len, inputs[:row])))
                about, inputs = about[row:], inputs[row:]
        self.row = Bucket(tokens, row_expressions)
        self._answer_tokens = max(len(self._answer(record)) for item in self.items for record in item)
        self.samples = len(self.items)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> TrainingRow:
        epoch, position = divmod(index, len(self.items))
        item = self.items[order_of(self._seed, epoch, len(self.items))[position]]
        image = open_image(item[0], self._images, self._spec.image)
        boxes = [record.boxes for record in item]
        suffixes = [self._input(record) for record in item]
        row, frame = encode_row(image, suffixes, boxes, self._spec, self._encoder, self.row)
        if self._grid is not None:
            empty = [()] * (self.row.expressions - len(item))
            masks = [mask_pixels(record.mask.model_dump()) if record.mask else None for record in item]
            row |= token_targets(
                [frame_boxes(rows, frame) for rows in [*boxes, *empty]],
                [*masks, *[None] * len(empty)],
                self._grid,
                frame,
            )
        if self._end_token_id is None:
            return row
        size = self.row.expressions * self._answer_tokens
        return row | answer_labels(row, [self._answer(record) for record in item], size)

    def _pack(self, about: list[Record], inputs: list[list[int]], limit: Bucket) -> list[int]:
        """How many expressions of an image each of its rows takes."""
        try:
            rows = pack(self._encoder.prefix, inputs, [limit], self._spec.prompt.pad_token_id)
        except ExpressionError as error:
            raise DataError(f"image {about[0].image}: {error}") from error
        return [row.expressions for row in rows]

    def _input(self, record: Record) -> list[int]:
        """The tokens of a record in its row: the suffix and, in text, the answer without its last token."""
        try:
            suffix = self._encoder.suffix(record.expression)
        except ExpressionError as error:
            raise DataError(f"record {record.id!r}: {error}") from error
        return suffix + self._answer(record)[:-1]

    def _answer(self, record: Record) -> list[int]:
        if self._end_token_id is None or record.box_xyxy is None:
            return []
        box = frame_boxes([record.box_xyxy], self._spec.frame((record.width, record.height)))[0]
        return [*self._encoder.answer(self._spec.generation.grammar.write(box.tolist())), self._end_token_id]


def open_image(record: Record, images: Path, transform: ImageTransform) -> Picture:
    """The image of a record, as the model needs it. Raises `DataError`."""
    try:
        image = transform.decode(encoded(images / record.image))
    except (OSError, ImageError) as error:
        remedy = "`referent data prepare` leaves such images out"
        raise DataError(f"image {record.image} of record {record.id!r}: {error}; {remedy}") from error
    if image.size != (record.width, record.height):
        raise DataError(
            f"image {record.image} is {'x'.join(map(str, image.size))}, record {record.id!r} says "
            f"{record.width}x{record.height}: prepare the data again"
        )
    return image


@lru_cache(maxsize=2)
def order_of(seed: int, epoch: int, items: int) -> list[int]:
    """The items of an epoch, shuffled."""
    order = list(range(items))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
