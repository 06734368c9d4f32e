"""`referent demo`: a Gradio page that asks a running service: models side by side, IoU with boxes that one knows."""

import json
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image

from referent.client.http import DEFAULT_URL, Client, ServiceError
from referent.client.results import COLUMNS, rows_of
from referent.commands.installation import CLONE, needs
from referent.commands.options import KEY, URL
from referent.commands.terminal import failure
from referent.core.boxes import Floats, iou

if TYPE_CHECKING:
    import gradio

MAX_WAITING = 64
REQUESTS_AT_A_TIME = 4
HEADERS = ["model", *COLUMNS, "IoU", "ms"]


@needs("the demo", "demo")
def demo(
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = 7860,
) -> None:
    """Show a page that compares the models of a running service, in the foreground; Ctrl-C stops it."""
    try:
        with Client(url, api_key=api_key) as client:
            page = build(client)
            _, address, _ = page.launch(
                prevent_thread_lock=True, quiet=True, footer_links=[], server_name=host, server_port=port
            )
            typer.echo(f"The demo is at {address}")
            page.block_thread()
    except (OSError, ValueError, ServiceError) as error:
        raise failure(str(error)) from error


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
            expressions = gradio.Textbox(label="What to look for: one expression on each line", lines=3)
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
    """Examples: image, expressions, their boxes; a wheel has none."""
    if CLONE is None:
        return []
    samples = CLONE / "tests" / "samples"
    scenes = json.loads((samples / "samples.json").read_text())
    return [
        [
            str(samples / scene["image"]),
            "\n".join(f"the {name}" for name in scene["objects"]),
            "\n".join(", ".join(map(str, box)) for box in scene["objects"].values()),
        ]
        for scene in scenes
    ]
