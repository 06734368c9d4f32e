"""Gets predictions from a checkpoint in this process, or from a running service.

All expressions of an image are asked together. An image or expression that can't be used becomes a prediction with its
error, which counts as a miss.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.client.http import Client
from referent.core.answers import Answer
from referent.core.images import ImageError, Picture
from referent.core.prompts import ExpressionError
from referent.core.sources import encoded
from referent.data.records import Record
from referent.evaluation.predictions import Prediction, prediction_of

EXPRESSIONS_PER_REQUEST = 16
BAD_INPUT = (400, 413, 415, 422)  # caused by the image or the expression: a miss; any other problem ends the run


class BatchGrounder(Protocol):
    """Decodes images as its model needs them, and grounds several in a pass: for each image, an answer to each of its
    expressions, in order. Raises `ImageError` and `ExpressionError`."""

    def decode(self, data: bytes) -> Picture: ...

    def ground_batch(
        self, images: Sequence[Picture], expressions: Sequence[Sequence[str]]
    ) -> Sequence[Sequence[Answer]]: ...


class ImageRecords(NamedTuple):
    """Records about one image; their expressions are asked together."""

    image: Path
    records: list[Record]

    @property
    def expressions(self) -> list[str]:
        return [record.expression for record in self.records]

    def alone(self) -> list["ImageRecords"]:
        """A request for each record, so that a refused one does not fail the others; empty if there is only one."""
        return [ImageRecords(self.image, [record]) for record in self.records] if len(self.records) > 1 else []

    def answered(self, answers: Sequence[Answer], ms: float | None) -> list[Prediction]:
        """A prediction for each record, all with the time of the request."""
        return [prediction_of(record.id, result, ms) for record, result in zip(self.records, answers, strict=True)]

    def failed(self, error: Exception) -> list[Prediction]:
        """A prediction with the error for each record."""
        return [Prediction(id=record.id, error=str(error)) for record in self.records]


def ask_checkpoint(
    grounder: BatchGrounder, records: Iterable[Record], images: Path, images_per_batch: int = 8
) -> Iterator[Prediction]:
    """Predictions of a model in this process, in no particular order; `ms` is the batch's time per image."""
    requests = _requests(records, images)
    for first in range(0, len(requests), images_per_batch):
        yield from _ground(grounder, requests[first : first + images_per_batch])


def _ground(grounder: BatchGrounder, requests: Sequence[ImageRecords]) -> Iterator[Prediction]:
    usable: list[ImageRecords] = []
    pictures: list[Picture] = []
    for request in requests:
        try:
            pictures.append(grounder.decode(encoded(request.image)))
            usable.append(request)
        except (OSError, ImageError) as error:
            yield from request.failed(error)
    if not usable:
        return
    start = time.perf_counter()
    try:
        answers = grounder.ground_batch(pictures, [request.expressions for request in usable])
    except ExpressionError as error:
        smaller = usable if len(usable) > 1 else usable[0].alone()
        if not smaller:
            yield from usable[0].failed(error)
        for request in smaller:
            yield from _ground(grounder, [request])
        return
    ms = 1000 * (time.perf_counter() - start) / len(usable)
    for request, found in zip(usable, answers, strict=True):
        yield from request.answered(found, ms)


def ask_service(
    client: Client,
    records: Iterable[Record],
    images: Path,
    model: str | None = None,
    max_instances: int | None = None,
    concurrency: int = 4,
) -> Iterator[Prediction]:
    """Predictions of a running service, in no particular order; `ms` is the round trip of the answered request.

    Raises `ServiceUnreachableError`, and `ServiceError` for problems that are not about an image or expression.
    """

    def ask(request: ImageRecords) -> list[Prediction]:
        try:
            answer = client.ground(request.image, request.expressions, model, max_instances)
        except ServiceUnreachableError:
            raise
        except (OSError, ImageError) as error:  # of the image's file
            return request.failed(error)
        except ServiceError as error:
            if error.status not in BAD_INPUT:
                raise
            alone = request.alone()
            return [answer for part in alone for answer in ask(part)] if alone else request.failed(error)
        return request.answered(answer.results, answer.elapsed_ms)

    with ThreadPoolExecutor(concurrency) as pool:
        for predictions in pool.map(ask, _requests(records, images)):
            yield from predictions


def _requests(records: Iterable[Record], images: Path) -> list[ImageRecords]:
    by_image: dict[str, list[Record]] = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record)
    return [
        ImageRecords(images / image, about[first : first + EXPRESSIONS_PER_REQUEST])
        for image, about in by_image.items()
        for first in range(0, len(about), EXPRESSIONS_PER_REQUEST)
    ]
