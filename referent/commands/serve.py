"""`referent serve`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from referent.commands.installation import needs_clone
from referent.commands.terminal import failure


@needs_clone("serving", "gateway", "local")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0: a free one.", show_default="8000")] = None,
    grpc_port: Annotated[int, typer.Option(help="Triton's gRPC port on 127.0.0.1; 0: a free one.")] = 8001,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder of the models to serve.", show_default="model_repository")
    ] = None,
) -> None:
    """Serve the models: Triton and the gateway, in the foreground; Ctrl-C stops both.

    What isn't given comes from the environment, REFERENT_PORT and so on.
    """
    given: dict[str, Any] = {"host": host, "port": port, "model_repository": model_repository}
    try:
        from gateway.server import listen, run, url_of
        from gateway.settings import Settings
        from gateway.telemetry import configure_logging
        from referent.core.bundle import verify_files
        from referent.triton.golden import probe
        from runtime.launcher import TritonServer

        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        configure_logging()
        with (
            listen(settings) as listener,  # before Triton starts, so that a port in use shows at once
            TritonServer(
                settings.model_repository,
                settings.triton_models,
                grpc_port=grpc_port,
                verify=verify_files,
                probe=partial(probe, settings.model_repository),
            ) as triton,
        ):
            what = f"{', '.join(triton.models)}; gRPC at {triton.grpc_url}"
            ready = f"Referent is ready at {url_of(listener)} ({what})"
            run(settings.model_copy(update={"triton_url": triton.grpc_url}), listener, lambda: typer.echo(ready))
    except KeyboardInterrupt:
        typer.echo("stopped")
    except (RuntimeError, ValueError, OSError) as error:
        raise failure(str(error)) from error
