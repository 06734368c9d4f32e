"""`referent serve`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from referent.commands.installation import needs_clone
from referent.commands.terminal import failure

DEADLINE_GOLDENS = 5  # a request's deadline is at least so many golden inferences of the slowest model


@needs_clone("serving", "gateway", "local")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0: a free one.", show_default="8000")] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="Open Triton's gRPC on 127.0.0.1; 0: at a free port.", show_default="a Unix socket"),
    ] = None,
    grpc_shared_memory: Annotated[
        bool, typer.Option(help="Let gRPC callers register shared memory, as perf_analyzer does.")
    ] = False,
    device: Annotated[
        Literal["cpu", "gpu"] | None,
        typer.Option(help="What the models run on.", show_default="the GPU, if one can be used"),
    ] = None,
    mode: Annotated[
        Literal["latency", "throughput"],
        typer.Option(help="On CPUs: one instance with all cores, or one per core for more throughput."),
    ] = "latency",
    gpu_memory_gb: Annotated[
        float | None, typer.Option(help="GPU memory for each part besides its weights.", show_default="all")
    ] = None,
    load_timeout: Annotated[
        float | None, typer.Option(help="Time limit for loading a model, in seconds.", show_default="by its size")
    ] = None,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder of the models to serve.", show_default="model_repository")
    ] = None,
) -> None:
    """Serve the models: Triton and the gateway, in the foreground; Ctrl-C stops both.

    Options that aren't given are read from the environment: REFERENT_PORT and so on.
    """
    given: dict[str, Any] = {"host": host, "port": port, "model_repository": model_repository}
    try:
        from gateway.server import listen, run, url_of
        from gateway.settings import Settings
        from gateway.telemetry import configure_logging
        from runtime.launcher import TritonServer

        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        configure_logging()
        with (
            listen(settings) as listener,  # before Triton starts, so that a port in use shows at once
            TritonServer(
                settings.model_repository,
                settings.triton_models,
                device=device,
                mode=mode,
                gpu_memory_gb=gpu_memory_gb,
                grpc_port=grpc_port,
                shared_memory=grpc_shared_memory,
                load_timeout_s=load_timeout,
                golden_timeout_s=settings.golden_timeout_s,
            ) as triton,
        ):
            what = f"{', '.join(triton.models)}; gRPC at {triton.grpc_url}"
            ready = f"Referent is ready at {url_of(listener)} ({what})"
            changes: dict[str, Any] = {"triton_url": triton.grpc_url}
            if "deadline_s" not in settings.model_fields_set:  # a large model on a CPU takes longer than the default
                changes["deadline_s"] = max(settings.deadline_s, DEADLINE_GOLDENS * triton.golden_s)
            run(settings.model_copy(update=changes), listener, lambda: typer.echo(ready))
    except KeyboardInterrupt:
        typer.echo("stopped")
    except (RuntimeError, ValueError, OSError) as error:
        raise failure(str(error)) from error
