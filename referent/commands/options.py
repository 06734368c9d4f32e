"""Options of all commands that ask a running service."""

from typing import Annotated

import typer

from referent.client.http import KEY_VARIABLE, URL_VARIABLE

URL = Annotated[str, typer.Option(envvar=URL_VARIABLE, help="Of the service.")]
KEY = Annotated[str | None, typer.Option(envvar=KEY_VARIABLE, help="Of a service that asks for one.")]
MODEL = Annotated[str | None, typer.Option(help="Which model.", show_default="the service's")]
