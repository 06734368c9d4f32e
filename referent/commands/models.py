"""`referent models`."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from referent.client.address import DEFAULT_URL
from referent.client.failures import ServiceError
from referent.client.http import Client
from referent.commands.options import KEY, URL
from referent.commands.terminal import failure

FIGURES = {"mean_iou": "mean IoU", "acc@0.5": "acc@0.5", "auroc": "AUROC"}  # of the bundle -> of the table


def models(
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """List the models that a running service has, with their figures on held-out data."""
    try:
        with Client(url, api_key=api_key) as client:
            served = client.models()
    except (OSError, ValueError, ServiceError) as error:
        raise failure(str(error)) from error
    if as_json:
        typer.echo(json.dumps([model.model_dump() for model in served], indent=2))
        return
    default = ", ".join(entry.name for entry in served if entry.default)
    table = Table("model", "version", "ready", "data", "n", *FIGURES.values(), title=f"default: {escape(default)}")
    for entry in served:
        sets: dict[str, dict[str, Any]] = entry.evaluation or {"": {}}
        for data_set, figures in sets.items():
            cells = (f"{figures[figure]:.3f}" if figure in figures else "" for figure in FIGURES)
            count = str(figures.get("n", ""))
            ready = "yes" if entry.ready else "no"
            table.add_row(escape(entry.name), entry.version, ready, escape(data_set), count, *cells)
    Console().print(table)
    if not served:
        typer.echo("no model is ready yet; the service's log says why", err=True)
