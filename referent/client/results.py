"""An answer together with its image: draws it, shows it in notebooks, and converts it for other tools."""

import base64
import html
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image
from pydantic import PrivateAttr

from referent.client.drawing import draw
from referent.core.answers import Answer, Referent
from referent.core.api import GroundResponse
from referent.core.boxes import Box
from referent.core.sources import ImageSource, held, is_url, picture_of

if TYPE_CHECKING:
    import supervision


class Grounding(GroundResponse):
    """A `GroundResponse` with its image. Pictures and other formats have only referents, not the guess for what is
    absent."""

    _image: str | os.PathLike[str] | bytes | Image.Image | None = PrivateAttr(None)
    _elapsed_ms: float | None = PrivateAttr(None)

    @property
    def elapsed_ms(self) -> float | None:
        """Round trip of the request that was answered, without earlier attempts and their waits."""
        return self._elapsed_ms

    @property
    def found(self) -> list[Answer]:
        """The results that have a referent."""
        return [result for result in self.results if result.referents]

    def of(self, image: ImageSource, elapsed_ms: float | None = None) -> Self:
        """Sets the image and returns itself. Raises the errors of `held`."""
        self._image = held(image)
        self._elapsed_ms = elapsed_ms
        return self

    def plot(self, image: ImageSource | None = None, truths: Sequence[Box] = ()) -> Image.Image:
        """The image with a box or dot and a label for each referent. Give `image` if it was asked about by URL.

        True boxes (x1, y1, x2, y2 in pixels) are drawn in white dashes. If there is no room for an expression's words,
        a legend below the image has them, and the result is larger than the image.

        Raises ValueError, and OSError for a file that can't be read any more.
        """
        source = self._image if image is None else image
        if source is None:
            raise ValueError("the answer has no image: give it here")
        return draw(picture_of(source), self.results, truths)

    def to_supervision(self) -> "supervision.Detections | supervision.KeyPoints":
        """A row for each referent: `Detections` of boxes, `KeyPoints` (one each) of points.

        `class_id` is the expression's place in the request, `data["class_name"]` the expression. Raises
        ModuleNotFoundError without the package supervision, and ValueError for an answer with boxes and points, which
        no class of supervision holds together.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}; to_supervision needs: pip install supervision") from error
        rows = [(place, referent) for place, result in enumerate(self.results) for referent in result.referents]
        scores = [referent.score for _, referent in rows if referent.score is not None]
        confidence = np.array(scores, np.float32) if len(scores) == len(rows) else None
        places = np.array([place for place, _ in rows], int)
        names: Any = {"class_name": np.array([referent.expression for _, referent in rows], str)}
        points = [referent.point_xy for _, referent in rows if referent.box_xyxy is None]
        if points:
            if len(points) < len(rows):
                raise ValueError(
                    "the answer has boxes and points: ask for them in two questions, and convert each answer"
                )
            return supervision.KeyPoints(
                xy=np.array(points, np.float32).reshape(-1, 1, 2),
                keypoint_confidence=None if confidence is None else confidence[:, None],
                class_id=places,
                data=names,
            )
        boxes = np.array([referent.box_xyxy for _, referent in rows], np.float32).reshape(-1, 4)
        return supervision.Detections(xyxy=boxes, confidence=confidence, class_id=places, data=names)

    def to_coco(self, image_id: int, categories: dict[str, int] | None = None) -> list[dict[str, Any]]:
        """COCO's results format, as pycocotools' `loadRes` reads it, a row for each referent: `bbox` is x, y, width,
        height in pixels, or `keypoints` x, y, 2 of a point; `expression` is beside it. `loadRes` takes rows of one kind
        at a time: choose those with `bbox`, or those with `keypoints`.

        `categories` gives the `category_id` of each expression; missing ones are added to it, numbered from 1. Pass the
        same dict for all pictures of a data set, or equal expressions get different ids in different pictures.
        """
        ids = {} if categories is None else categories
        rows = []
        for result in self.results:
            category = ids.setdefault(result.expression, max(ids.values(), default=0) + 1)
            for referent in result.referents:
                row: dict[str, Any] = {"image_id": image_id, "category_id": category}
                if referent.box_xyxy is not None:
                    x1, y1, x2, y2 = referent.box_xyxy
                    row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                elif referent.point_xy is not None:
                    row["keypoints"] = [*referent.point_xy, 2]
                score = {} if referent.score is None else {"score": referent.score}
                rows.append({**row, **score, "expression": result.expression})
        return rows

    def _repr_png_(self) -> bytes | None:
        """For notebooks; None if only the URL of the image is known."""
        if self._image is None or is_url(self._image):
            return None
        buffer = io.BytesIO()
        self.plot().save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """For notebooks: the picture over the results."""
        png = self._repr_png_()
        picture = f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">' if png else ""
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
            for result in self.results
            for cells in rows_of(result)
        )
        heads = "".join(f"<th>{name}</th>" for name in COLUMNS)
        return f"{picture}<table><tr>{heads}</tr>{rows}</table>"


COLUMNS = ("expression", "box x1, y1, x2, y2, or point x, y", "score", "present")


def rows_of(answer: Answer) -> list[tuple[str, str, str, str]]:
    """Rows of `COLUMNS`, for people: one for each referent, or one for the best guess if there is none."""
    return [_cells(referent) for referent in answer.referents or (answer,)]


def _cells(referent: Referent) -> tuple[str, str, str, str]:
    where = ", ".join(f"{value:.1f}" for value in referent.box_xyxy or referent.point_xy or ())
    score = "" if referent.score is None else f"{referent.score:.2f}"
    return referent.expression, where, score, {True: "yes", False: "no", None: ""}[referent.present]
