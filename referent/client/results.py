"""An answer together with its image: drawn, shown in notebooks, and in the formats of other tools."""

import base64
import html
import io
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image
from pydantic import PrivateAttr

from referent.client.drawing import draw
from referent.core.api import GroundResponse
from referent.core.processor import Found
from referent.core.sources import ImageSource, is_url, picture_of

if TYPE_CHECKING:
    import supervision


class Grounding(GroundResponse):
    """`GroundResponse` that knows its image. Objects that are not there are left out of pictures and other formats."""

    _image: ImageSource | None = PrivateAttr(None)
    _elapsed_ms: float | None = PrivateAttr(None)

    @property
    def elapsed_ms(self) -> float | None:
        """The round trip of the request that was answered, without the waits of those before."""
        return self._elapsed_ms

    @property
    def found(self) -> list[Found]:
        """The results whose object is there, as far as the model says."""
        return [result for result in self.results if result.present is not False]

    def of(self, image: ImageSource, elapsed_ms: float | None = None) -> Self:
        """Itself, from now on with its image."""
        self._image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        self._elapsed_ms = elapsed_ms
        return self

    def plot(self, image: ImageSource | None = None) -> Image.Image:
        """The image with a box and a label for each object; `image` where it was given by URL before.

        Raises ValueError, and OSError for a file that can't be read any more.
        """
        source = self._image if image is None else image
        if source is None:
            raise ValueError("the answer has no image: give it here")
        return draw(picture_of(source), self.results)

    def to_supervision(self) -> "supervision.Detections":
        """`class_id` is the expression's place in the request, `data["class_name"]` the expression.

        Raises ModuleNotFoundError without the package supervision.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}; to_supervision needs: pip install supervision") from error
        places = [index for index, result in enumerate(self.results) if result.present is not False]
        scores = [result.score for result in self.found if result.score is not None]
        return supervision.Detections(
            xyxy=np.array([result.box_xyxy for result in self.found], np.float32).reshape(-1, 4),
            confidence=np.array(scores, np.float32) if len(scores) == len(places) else None,
            class_id=np.array(places, int),
            data={"class_name": np.array([result.expression for result in self.found], str)},
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO's results format, as pycocotools' `loadRes` reads it: `bbox` is x, y, width, height in pixels,
        `category_id` the expression's place in the request from 1 on, `caption` the expression."""
        rows = []
        for category, result in enumerate(self.results, 1):
            if result.present is False:
                continue
            x1, y1, x2, y2 = result.box_xyxy
            row = {"image_id": image_id, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            score = {} if result.score is None else {"score": result.score}
            rows.append({**row, **score, "caption": result.expression})
        return rows

    def _repr_png_(self) -> bytes | None:
        """For notebooks; nothing where there is only the URL of the image."""
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
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells_of(result)) + "</tr>"
            for result in self.results
        )
        heads = "".join(f"<th>{name}</th>" for name in COLUMNS)
        return f"{picture}<table><tr>{heads}</tr>{rows}</table>"


COLUMNS = ("expression", "box x1, y1, x2, y2", "score", "present")


def cells_of(found: Found) -> tuple[str, str, str, str]:
    """A row of `COLUMNS`, for people."""
    box = ", ".join(f"{value:.1f}" for value in found.box_xyxy)
    score = "" if found.score is None else f"{found.score:.2f}"
    return found.expression, box, score, {True: "yes", False: "no", None: ""}[found.present]
