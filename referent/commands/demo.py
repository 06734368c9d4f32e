"""`referent demo`: a Gradio page for a running service: models side by side, and IoU with true boxes."""

import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image

from referent.client.address import DEFAULT_URL
from referent.client.failures import ServiceError
from referent.client.http import Client
from referent.client.results import COLUMNS, rows_of
from referent.commands.installation import CLONE, needs
from referent.commands.options import KEY, URL
from referent.commands.terminal import failure
from referent.core.boxes import Floats, iou

if TYPE_CHECKING:
    import gradio

MAX_WAITING = 64
REQUESTS_AT_A_TIME = 4
FIRST = ("baseline", "frozen", "main")  # the models of visual-grounding-api, in the order of its own page
HOW_TO_DRAW = "To draw a true box, click on two opposite corners in the picture."
CORNER = "The first corner is at {}, {}: click on the opposite one."
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


@dataclass(frozen=True)
class Shown:
    """What one model answered."""

    picture: Image.Image  # with its referents, and the true boxes in white dashes
    caption: str
    text: str  # what the model wrote; empty for models that don't answer in text


def build(client: Client) -> "gradio.Blocks":
    """The page, for the models that the service has now.

    Raises ModuleNotFoundError without gradio, `ServiceUnreachableError` and `ServiceError`.
    """
    import gradio  # here, since it takes seconds

    models = sorted(client.models(), key=lambda model: FIRST.index(model.name) if model.name in FIRST else len(FIRST))
    names = [model.name for model in models]
    beside = [name for name in names if name in FIRST]
    defaults = beside or [model.name for model in models if model.default] or names

    def answer(image: str | None, expressions: str, chosen: list[str], truth: str) -> list[Any]:
        """The table of all models; then for each model a picture and what it wrote."""
        try:
            shown, rows = ground(client, image, expressions.splitlines(), chosen, truth.splitlines())
        except (OSError, ValueError, ServiceError) as error:
            raise gradio.Error(str(error), print_exception=False) from error
        outputs: list[Any] = [rows]
        for name in names:
            if each := shown.get(name):
                outputs.append(gradio.update(value=each.picture, label=each.caption, visible=True))
                outputs.append(gradio.update(value=each.text, visible=bool(each.text)))
            else:
                outputs += [gradio.update(value=None, visible=False), gradio.update(visible=False)]
        return outputs

    def click(
        truth: str, expressions: str, corner: tuple[int, int] | None, event: gradio.SelectData
    ) -> tuple[str, tuple[int, int] | None, str]:
        """The first click sets a corner; the second completes the box, in the first line that has none."""
        x, y = event.index
        if corner is None:
            return truth, (x, y), CORNER.format(x, y)
        return with_box(truth, expressions, corner, (x, y)), None, HOW_TO_DRAW

    page = gradio.Blocks(title="Referent", analytics_enabled=False)
    with page:
        gradio.Markdown("# Referent\nWhere in this image is what these words refer to?")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="filepath", label="Image")
                hint = gradio.Markdown(HOW_TO_DRAW)
            with gradio.Column():
                expressions = gradio.Textbox(label="What to look for: one expression on each line", lines=3)
                truth = gradio.Textbox(label="True boxes, if you know them: x1, y1, x2, y2 on the same lines", lines=3)
                chosen = gradio.CheckboxGroup(names, value=defaults, label="Models")
                button = gradio.Button("Find", variant="primary")
        outputs = []
        with gradio.Row():
            for name in names:
                with gradio.Column(min_width=240):
                    outputs.append(gradio.Image(label=name, interactive=False, visible=name in defaults))
                    outputs.append(gradio.Textbox(label=f"What {name} wrote", lines=2, visible=False))
        table = gradio.Dataframe(headers=HEADERS, label="Boxes", interactive=False)
        corner = gradio.State(None)
        image.select(click, [truth, expressions, corner], [truth, corner, hint], api_visibility="private")
        button.click(
            answer,
            [image, expressions, chosen, truth],
            [table, *outputs],
            api_name="ground",
            concurrency_limit=REQUESTS_AT_A_TIME,
        )
        if examples := sample_scenes():
            gradio.Examples(examples, [image, expressions, truth])
    page.queue(max_size=MAX_WAITING)
    return page


def ground(
    client: Client, image: str | None, expressions: list[str], models: list[str], truth: list[str]
) -> tuple[dict[str, Shown], list[list[str]]]:
    """Each model's answer, by its name, and a row of `HEADERS` for each model and referent.

    Raises ValueError for what is missing or wrong, and the errors of `Client.ground`.
    """
    asked = {line.strip(): parse_box(known) for line, known in zip_longest(expressions, truth, fillvalue="")}
    asked.pop("", None)
    if not image or not asked or not models:
        raise ValueError("give an image, something to look for, and a model")
    truths = [tuple(box.tolist()) for box in asked.values() if box is not None]
    shown, rows = {}, []
    for model in models:
        found = client.ground(image, list(asked), model)
        ms = f"{found.timings_ms.total:.0f}"
        text = "\n".join(f"{result.expression}: {result.text}" for result in found.results if result.text is not None)
        shown[model] = Shown(found.plot(truths=truths), f"{found.model} version {found.version}, {ms} ms", text)
        for result in found.results:
            for referent, cells in zip(result.referents or (result,), rows_of(result), strict=True):
                known = asked[result.expression]
                comparable = known is not None and referent.box_xyxy is not None
                overlap = f"{iou(np.array(referent.box_xyxy), known):.2f}" if comparable else ""
                rows.append([model, *cells, overlap, ms])
    return shown, rows


def with_box(truth: str, expressions: str, corner: tuple[int, int], other: tuple[int, int]) -> str:
    """The lines of true boxes with a new box of two corners. It goes into the first line of an expression that has no
    box, or else replaces the last."""
    lines = truth.splitlines()
    count = max(1, len(expressions.rstrip().splitlines()))
    lines += [""] * (count - len(lines))
    free = next((index for index, line in enumerate(lines[:count]) if not line.strip()), count - 1)
    sides = [sorted(pair) for pair in zip(corner, other, strict=True)]
    lines[free] = ", ".join(str(round(sides[axis][end])) for end in (0, 1) for axis in (0, 1))
    return "\n".join(lines)


def parse_box(text: str) -> Floats | None:
    """ "x1, y1, x2, y2" -> (4,), None for empty text. Raises ValueError for anything else."""
    if not text.strip():
        return None
    try:
        x1, y1, x2, y2 = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a box: give x1, y1, x2, y2 in pixels, or nothing") from None
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"{text!r} is not a box: x1 must be less than x2, and y1 less than y2")
    return np.array([x1, y1, x2, y2])


def sample_scenes() -> list[list[str]]:
    """Examples: image, expressions, their boxes; empty in a wheel, which has no samples."""
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
