"""Options of all commands that ask a running service."""

from typing import Annotated

import typer

from referent.client.address import KEY_VARIABLE, URL_VARIABLE
from referent.core.kind import MAX_INSTANCES as MOST

URL = Annotated[str, typer.Option(envvar=URL_VARIABLE, help="URL of the service.")]
KEY = Annotated[str | None, typer.Option(envvar=KEY_VARIABLE, help="API key, if the service needs one.")]
MAX_INSTANCES = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, help="Most referents to return for each expression.", show_default="the model's"),
]
MODEL = Annotated[str | None, typer.Option(help="Which model.", show_default="the service's")]
