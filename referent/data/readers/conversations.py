"""LLaVA and VPP-SFT conversations: boxes written into the answers, as shares of the padded square."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from referent.core.boxes import Box
from referent.data.image_files import upright_size
from referent.data.readers.rows import json_rows, need_images, split_of, to_records
from referent.data.records import Record, Rejected, RowError

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: "
AXES_HINT = ". Each image is accompanied by axes"  # VPP-LLaVA's addition to the question
NUMBER = r"\s*(-?\d*\.?\d+|nan)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]", re.IGNORECASE)


class Turn(BaseModel):
    """What one side said."""

    speaker: Literal["human", "gpt", "system"] = Field(alias="from")
    value: str


class Conversation(BaseModel):
    """A row; LLaVA has some without an image."""

    id: str | int
    image: str | None = None
    conversations: list[Turn]


def read_conversations(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """One record a question for a box; other questions are counted as such."""
    folder, split = need_images(images, "boxes are shares of each image's padded square"), split_of(annotations)

    def convert(row: Conversation, where: str) -> Iterator[Record | Rejected]:
        for number, (question, answer) in enumerate(pairwise(row.conversations)):
            if (question.speaker, answer.speaker) != ("human", "gpt"):
                continue
            if row.image is None or QUESTION not in question.value:
                yield Rejected("not a question for a box", where)
                continue
            expression = question.value.partition(QUESTION)[2].partition(AXES_HINT)[0]
            width, height = upright_size(folder / row.image)
            try:
                box = square_to_pixels(_parse(answer.value), width, height)
            except RowError as error:
                yield Rejected(str(error), where)
                continue
            yield Record(
                id=f"{row.id}-{number // 2}", image=row.image, width=width, height=height, expression=expression,
                box_xyxy=box, split=split,
            )  # fmt: skip

    return to_records(json_rows(annotations), Conversation, convert)


def square_to_pixels(box: Box, width: int, height: int) -> Box:
    """0..1 of the square that the image is centred in -> pixels of the image, as VPP-LLaVA encodes them."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return box[0] * side - left, box[1] * side - top, box[2] * side - left, box[3] * side - top


def _parse(answer: str) -> Box:
    found = BOX.search(answer)
    if not found:
        raise RowError("no box in the answer")
    x1, y1, x2, y2 = (float(number) for number in found.groups())
    return x1, y1, x2, y2
