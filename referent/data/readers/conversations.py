"""LLaVA and VPP-SFT conversations: boxes are written in the answers, as shares of the padded square.

`read_conversations` reads the questions for a box, which can be evaluated; `read_dialogues` reads everything, for
training in text.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from referent.core.boxes import Box
from referent.data.image_files import upright_size
from referent.data.readers.rows import json_rows, need_images, split_of, to_records
from referent.data.records import Record, Rejected, RowError, check_image_path

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: "
IMAGE_MARK = "<image>"
AXES_HINT = re.compile(r"\.? Each image is accompanied by axes")  # VPP-LLaVA's addition to the question
NUMBER = r"\s*(-?\d*\.?\d+|nan)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]", re.IGNORECASE)


class Turn(BaseModel):
    """What one side said."""

    speaker: Literal["human", "gpt", "system"] = Field(alias="from")
    value: str


class Conversation(BaseModel):
    """A row; some rows of LLaVA have no image."""

    id: str | int
    image: str | None = None
    conversations: list[Turn]


class Dialogue(NamedTuple):
    """A conversation about an image, or about none; each exchange is a question and its answer, without `<image>`."""

    where: str  # file and row
    image: str | None  # path in the image folder
    exchanges: tuple[tuple[str, str], ...]


def read_conversations(annotations: Path, images: Path | None) -> Iterator[Record | Rejected]:
    """A record for each question for a box; other questions become `Rejected`."""
    folder, split = need_images(images, "boxes are shares of each image's padded square"), split_of(annotations)

    def convert(row: Conversation, where: str) -> Iterator[Record | Rejected]:
        for number, (question, answer) in enumerate(pairwise(row.conversations)):
            if (question.speaker, answer.speaker) != ("human", "gpt"):
                continue
            if row.image is None or QUESTION not in question.value:
                yield Rejected("not a question for a box", where)
                continue
            expression = AXES_HINT.split(question.value.partition(QUESTION)[2], maxsplit=1)[0]
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


def read_dialogues(annotations: Path, images: Path) -> Iterator[Dialogue | Rejected]:
    """Every conversation as a whole. Raises `AnnotationError` and OSError, as `read` does."""

    def convert(row: Conversation, where: str) -> Iterator[Dialogue]:
        marks = sum(turn.value.count(IMAGE_MARK) for turn in row.conversations)
        if marks > 1 or (marks == 1 and row.image is None):
            raise RowError("more images are spoken of than there are")
        if row.image is not None:
            check_image_path(row.image)
            upright_size(images / row.image)
        yield Dialogue(where, row.image, tuple(_exchanges(row.conversations)))

    return to_records(json_rows(annotations), Conversation, convert)


def _exchanges(turns: list[Turn]) -> Iterator[tuple[str, str]]:
    """Questions with their answers. Turns before the first question and a question without an answer are left out.

    Raises `RowError`.
    """
    while turns and turns[0].speaker != "human":
        turns = turns[1:]
    if len(turns) < 2:
        raise RowError("no answer")
    for number, (question, answer) in enumerate(zip(turns[::2], turns[1::2], strict=False)):
        if (question.speaker, answer.speaker) != ("human", "gpt"):
            raise RowError("the speakers do not take turns")
        if not answer.value.strip():
            raise RowError("empty answer")
        if IMAGE_MARK in question.value and number:
            raise RowError("the image is not spoken of first")
        yield question.value.replace(IMAGE_MARK, "").strip(), answer.value.strip()


def square_to_pixels(box: Box, width: int, height: int) -> Box:
    """0..1 of the square that the image is centred in -> pixels of the image, as VPP-LLaVA encodes them."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return box[0] * side - left, box[1] * side - top, box[2] * side - left, box[3] * side - top


def _parse(answer: str) -> Box:
    found = BOX.findall(answer)
    if not found:
        raise RowError("no box in the answer")
    if len(found) > 1:
        raise RowError("several boxes in one answer")
    x1, y1, x2, y2 = map(float, found[0])
    return x1, y1, x2, y2
