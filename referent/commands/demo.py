"""A Gradio page that asks a running service: models side by side, and IoU with boxes that one knows.

referent demo
"""

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from referent.client.http import Client, ServiceError
from referent.client.results import COLUMNS, rows_of
from referent.core.boxes import Floats, iou

if TYPE_CHECKING:
    import gradio

SAMPLES = Path(__file__).parents[2] / "tests" / "samples"  # of a checkout; without one there are no examples
MAX_WAITING = 64
REQUESTS_AT_A_TIME = 4
HEADERS = ["model", *COLUMNS, "IoU", "ms"]


def build(client: Client) -> "gradio.Blocks":
    """The page, for the models that the service has now.

    Raises ModuleNotFoundError without gradio, `ServiceUnreachableError` and `ServiceError`.
    """
    import gradio  # here, since it takes seconds

    models = client.models()
    names = [model.name for model in models]
    defaults = [model.name for model in models if model.default] or names

    def answer(
        image: str | None, expressions: str, chosen: list[str], truth: str
    ) -> tuple[list[tuple[Image.Image, str]], list[list[str]]]:
        """A picture a model, and a row a model and expression."""
        try:
            return ground(client, image, expressions.splitlines(), chosen, truth.splitlines())
        except (OSError, ValueError, ServiceError) as error:
            raise gradio.Error(str(error), print_exception=False) from error

    page = gradio.Blocks(title="Referent", analytics_enabled=False)
    with page:
        gradio.Markdown("# Referent\nWhere in this image is what these words refer to?")
        with gradio.Row():
            image = gradio.Image(type="filepath", label="Image")
            pictures = gradio.Gallery(label="Found", columns=2, object_fit="contain")
        with gradio.Row():
            expressions = gradio.Textbox(label="What to look for, one a line", lines=3)
            truth = gradio.Textbox(label="Where you know it: x1, y1, x2, y2 in pixels, in the same lines", lines=3)
        chosen = gradio.CheckboxGroup(names, value=defaults, label="Models")
        button = gradio.Button("Find", variant="primary")
        table = gradio.Dataframe(headers=HEADERS, label="Boxes", interactive=False)
        button.click(
            answer,
            [image, expressions, chosen, truth],
            [pictures, table],
            api_name="ground",
            concurrency_limit=REQUESTS_AT_A_TIME,
        )
        if examples := sample_scenes():
            gradio.Examples(examples, [image, expressions, truth])
    page.queue(max_size=MAX_WAITING)
    return page


def ground(
    client: Client, image: str | None, expressions: list[str], models: list[str], truth: list[str]
) -> tuple[list[tuple[Image.Image, str]], list[list[str]]]:
    """A picture with a caption for each model, and a row of `HEADERS` for each model and expression.

    Raises ValueError for what is missing or wrong, and as `Client.ground` does.
    """
    asked = {line.strip(): parse_box(known) for line, known in zip_longest(expressions, truth, fillvalue="")}
    asked.pop("", None)
    if not image or not asked or not models:
        raise ValueError("give an image, something to look for, and a model")
    pictures, rows = [], []
    for model in models:
        found = client.ground(image, list(asked), model)
        ms = f"{found.timings_ms.total:.0f}"
        pictures.append((found.plot(), f"{found.model} version {found.version}, {ms} ms"))
        for result in found.results:
            for referent, cells in zip(result.referents or (result,), rows_of(result), strict=True):
                known = asked[result.expression]
                comparable = known is not None and referent.box_xyxy is not None
                overlap = f"{iou(np.array(referent.box_xyxy), known):.2f}" if comparable else ""
                rows.append([model, *cells, overlap, ms])
    return pictures, rows


def parse_box(text: str) -> Floats | None:
    """ "x1, y1, x2, y2" -> (4,), None for nothing. Raises ValueError for anything else."""
    if not text.strip():
        return None
    try:
        x1, y1, x2, y2 = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is no box: give x1, y1, x2, y2 in pixels, or nothing") from None
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"{text!r} is no box: x1 must be less than x2, and y1 less than y2")
    return np.array([x1, y1, x2, y2])


def sample_scenes() -> list[list[str]]:
    """Examples: image, expressions, their boxes."""
    file = SAMPLES / "samples.json"
    scenes = json.loads(file.read_text()) if file.exists() else []
    return [
        [
            str(SAMPLES / scene["image"]),
            "\n".join(f"the {name}" for name in scene["objects"]),
            "\n".join(", ".join(map(str, box)) for box in scene["objects"].values()),
        ]
        for scene in scenes
    ]
