"""The command line: referent --help"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from referent.api import GroundResponse
from referent.client import DEFAULT_URL, Client, ServiceError
from referent.data.command import app as data
from referent.drawing import draw
from referent.evaluation.command import compare, evaluate
from referent.images import decode_image
from referent.terminal import failure
from referent.training.command import SWEEP_CONTEXT, sweep, train

app = typer.Typer(
    help="Visual grounding: where in an image is what these words refer to?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.command()
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
        from gateway.__main__ import listen, run, url_of
        from gateway.golden import probe
        from gateway.settings import Settings
        from gateway.telemetry import configure_logging
        from referent.bundle import verify_files
        from runtime.launcher import TritonServer

        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        configure_logging()
        with (
            listen(settings) as listener,  # before Triton starts, so that a port in use shows at once
            TritonServer(
                settings.model_repository,
                grpc_port=grpc_port,
                verify=verify_files,
                probe=partial(probe, settings.model_repository),
            ) as triton,
        ):
            ready = f"Referent is ready at {url_of(listener)} ({', '.join(triton.models)}; gRPC at {triton.grpc_url})"
            run(settings.model_copy(update={"triton_url": triton.grpc_url}), listener, lambda: typer.echo(ready))
    except KeyboardInterrupt:
        typer.echo("stopped")
    except ModuleNotFoundError as error:
        raise failure(f"{error}; serving needs: pip install 'referent[gateway,local]'") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise failure(str(error)) from error


@app.command()
def ground(
    image: Annotated[Path, typer.Argument(help="JPEG, PNG or WebP file.")],
    expressions: Annotated[list[str], typer.Argument(help="What to look for, such as 'the red cup'.")],
    url: Annotated[str, typer.Option(help="Of the service.")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Which model.", show_default="the service's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    save: Annotated[Path | None, typer.Option(help="File to write the image to, with the boxes drawn.")] = None,
) -> None:
    """Ask a running service where in the image is what each expression refers to."""
    try:
        data = image.read_bytes()
        with Client(url) as client:
            answer = client.ground(data, expressions, model)
        if save:
            draw(decode_image(data), answer.results).save(save)
    except (OSError, ValueError, ServiceError) as error:
        raise failure(str(error)) from error
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        Console().print(_table(answer))


@app.command()
def doctor(
    model_repository: Annotated[Path, typer.Option(help="Folder of the models to serve.")] = Path("model_repository"),
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Triton's gRPC port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics.")] = 9090,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check what this machine has against what serving, training and exporting need; exit 1 if something won't work."""
    from referent.doctor import examine

    ports = {"--port": port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
    checks = list(examine(model_repository, ports))
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        table = Table("", "", "found", "what to do")
        for check in checks:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.status]
            cells = (check.subject, check.found, check.remedy)
            table.add_row(f"[{colour}]{check.status}", *map(escape, cells))
        Console().print(table)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def _table(answer: GroundResponse) -> Table:
    size = f"{answer.image.width}x{answer.image.height}"
    title = f"{answer.model} version {answer.version}, {size} pixels, {answer.timings_ms.total:.0f} ms"
    table = Table("expression", "box x1, y1, x2, y2", "score", "present", title=title)
    for found in answer.results:
        box = ", ".join(f"{value:.1f}" for value in found.box_xyxy)
        score = "" if found.score is None else f"{found.score:.2f}"
        present = {True: "yes", False: "no", None: ""}[found.present]
        table.add_row(escape(found.expression), box, score, present)
    return table


for command in (train, evaluate, compare):
    app.command()(command)
app.command(context_settings=SWEEP_CONTEXT)(sweep)
app.add_typer(data, name="data")
