"""`referent ground`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from referent.client.address import DEFAULT_URL
from referent.client.failures import ServiceError
from referent.client.http import Client
from referent.client.results import COLUMNS, rows_of
from referent.commands.options import KEY, MAX_INSTANCES, MODEL, URL
from referent.commands.terminal import failure
from referent.core.api import GroundResponse
from referent.core.sources import from_argument


def ground(
    image: Annotated[
        str,
        typer.Argument(help="JPEG, PNG, WebP or AVIF file, - for standard input, or a URL for the service to fetch."),
    ],
    expressions: Annotated[list[str], typer.Argument(help="What to look for, such as 'the red cup'.")],
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    model: MODEL = None,
    max_instances: MAX_INSTANCES = None,
    heatmap: Annotated[
        bool, typer.Option(help="Ask where the model looked; --save draws it, --json prints it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the image to this file, with the boxes drawn.")] = None,
) -> None:
    """Ask a running service where in the image is what each expression refers to."""
    try:
        with Client(url, api_key=api_key) as client:
            answer = client.ground(from_argument(image), expressions, model, max_instances, heatmap)
        if save:
            answer.plot().save(save)
    except (OSError, ValueError, ServiceError) as error:
        raise failure(str(error)) from error
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        Console().print(_table(answer))


def _table(answer: GroundResponse) -> Table:
    size = f"{answer.image.width}x{answer.image.height}"
    title = f"{answer.model} version {answer.version}, {size} pixels, {answer.timings_ms.total:.0f} ms"
    table = Table(*COLUMNS, title=title)
    for result in answer.results:
        for cells in rows_of(result):
            table.add_row(*map(escape, cells))
    return table
