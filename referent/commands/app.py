"""The command line: referent --help"""

import ast
import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import stamina.instrumentation
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from referent.client.http import (
    DEFAULT_URL,
    KEY_VARIABLE,
    URL_VARIABLE,
    AsyncClient,
    Client,
    ServiceError,
    ServiceUnreachableError,
)
from referent.client.results import COLUMNS, rows_of
from referent.commands.data import app as data
from referent.commands.evaluate import compare, evaluate
from referent.commands.terminal import failure, progress_bar
from referent.commands.train import SWEEP_CONTEXT, sweep, train
from referent.core.api import GroundResponse

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FIGURES = {"mean_iou": "mean IoU", "acc@0.5": "acc@0.5", "auroc": "AUROC"}  # of the bundle -> of the table
INTERRUPTED = 130  # what shells report of Ctrl-C

app = typer.Typer(
    help="Visual grounding: where in an image is what these words refer to?",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def configure() -> None:
    stamina.instrumentation.set_on_retry_hooks([])  # its log lines would stand among what commands print


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
            ready = f"Referent is ready at {url_of(listener)} ({', '.join(triton.models)}; gRPC at {triton.grpc_url})"
            run(settings.model_copy(update={"triton_url": triton.grpc_url}), listener, lambda: typer.echo(ready))
    except KeyboardInterrupt:
        typer.echo("stopped")
    except ModuleNotFoundError as error:
        raise failure(f"{error}; serving needs: pip install 'referent[gateway,local]'") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise failure(str(error)) from error


URL = Annotated[str, typer.Option(envvar=URL_VARIABLE, help="Of the service.")]
KEY = Annotated[str | None, typer.Option(envvar=KEY_VARIABLE, help="Of a service that asks for one.")]
MODEL = Annotated[str | None, typer.Option(help="Which model.", show_default="the service's")]
FORWARDING = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
def ground(
    image: Annotated[str, typer.Argument(help="JPEG, PNG or WebP file, or a URL that the service may fetch.")],
    expressions: Annotated[list[str], typer.Argument(help="What to look for, such as 'the red cup'.")],
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    model: MODEL = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    save: Annotated[Path | None, typer.Option(help="File to write the image to, with the boxes drawn.")] = None,
) -> None:
    """Ask a running service where in the image is what each expression refers to."""
    try:
        with Client(url, api_key=api_key) as client:
            answer = client.ground(image, expressions, model)
        if save:
            answer.plot().save(save)
    except (OSError, ValueError, ServiceError) as error:
        raise failure(str(error)) from error
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        Console().print(_table(answer))


@app.command()
def batch(
    source: Annotated[Path, typer.Argument(help="Folder of images, or a list of them: .txt, .csv or .jsonl.")],
    out: Annotated[Path, typer.Option(help="File of results, JSON lines; what it has already is not asked again.")],
    expressions: Annotated[
        list[str] | None, typer.Argument(help="What to look for in images whose list does not say it.")
    ] = None,
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    model: MODEL = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    retry_errors: Annotated[bool, typer.Option(help="Ask again what failed before.")] = False,
) -> None:
    """Ask a running service about many images. Stopped or killed, the same command goes on where it was."""
    from referent.client.batch import Item, Results, ask, read_items

    async def run(items: list[Item], results: Results, advance: Callable[[], None]) -> None:
        async with AsyncClient(url, api_key=api_key) as client:
            async for _ in ask(client, items, results, concurrency):
                advance()

    try:
        items = read_items(source, expressions or [])
        with Results(out, model, retry_errors) as results:
            before = sum(item in results.done for item in items)
            try:
                with progress_bar(len(items), before) as advance:
                    asyncio.run(run(items, results, advance))
            except (KeyboardInterrupt, ServiceUnreachableError, ServiceError) as error:
                done = sum(item in results.done for item in items)
                typer.echo(f"{done} of {len(items)} are in {out}; the same command goes on from there", err=True)
                raise failure(str(error) or "stopped", 1 if str(error) else INTERRUPTED) from error
    except (OSError, ValueError) as error:
        raise failure(str(error)) from error
    typer.echo(f"{len(items)} results, {len(items) - before} of them new -> {out}")
    if results.errors:
        raise failure(f"{results.errors} of the results are errors: --retry-errors asks these again")


@app.command()
def models(
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """List the models that a running service has, with their figures on held-out data."""
    try:
        with Client(url, api_key=api_key) as client:
            served = client.models()
    except (OSError, ServiceError) as error:
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


@app.command(context_settings=FORWARDING, add_help_option=False)
def export(context: typer.Context) -> None:
    """Export a checkpoint for Triton: merge, split, ONNX, check, publish; --help has its options."""
    try:
        from export.build import main
    except ModuleNotFoundError as error:
        raise failure(f"{error}; exporting needs: pip install 'referent[export]'") from error
    main(context.args, "referent export")


@app.command(context_settings=FORWARDING | {"allow_interspersed_args": False})
def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which; the rest of the line is for it.")] = None,
) -> None:
    """Run a benchmark of the checkout, or list them."""
    if not (BENCHMARKS / "RESULTS.md").is_file():  # other packages leave a folder of that name beside ours
        raise failure(f"there is no {BENCHMARKS}: benchmarks are in the project's checkout, not in the package")
    scripts = {file.stem: file for file in sorted(BENCHMARKS.glob("*.py")) if "def main(" in file.read_text()}
    if name is None:
        table = Table("benchmark", "what it measures", "figures: benchmarks/RESULTS.md")
        for stem, file in scripts.items():
            summary = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
            table.add_row(stem, escape(summary), f"referent bench {stem} --help")
        Console().print(table)
    elif name not in scripts:
        raise failure(f"no benchmark {name!r}; there are: {', '.join(scripts)}")
    else:
        command = [sys.executable, "-m", f"benchmarks.{name}", *context.args]
        raise typer.Exit(subprocess.run(command, cwd=BENCHMARKS.parent).returncode)


@app.command()
def demo(
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = 7860,
) -> None:
    """Show a page that compares the models of a running service, in the foreground; Ctrl-C stops it."""
    try:
        from referent.commands.demo import build

        with Client(url, api_key=api_key) as client:
            page = build(client)
            _, address, _ = page.launch(
                prevent_thread_lock=True, quiet=True, footer_links=[], server_name=host, server_port=port
            )
            typer.echo(f"The demo is at {address}")
            page.block_thread()
    except ModuleNotFoundError as error:
        raise failure(f"{error}; the demo needs: pip install 'referent[demo]'") from error
    except (OSError, ServiceError) as error:
        raise failure(str(error)) from error


@app.command()
def doctor(
    model_repository: Annotated[Path, typer.Option(help="Folder of the models to serve.")] = Path("model_repository"),
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Triton's gRPC port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics.")] = 9090,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check what this machine has against what serving, training and exporting need; exit 1 if something won't work."""
    from referent.commands.doctor import examine

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
    table = Table(*COLUMNS, title=title)
    for result in answer.results:
        for cells in rows_of(result):
            table.add_row(*map(escape, cells))
    return table


for command in (train, evaluate, compare):
    app.command()(command)
app.command(context_settings=SWEEP_CONTEXT)(sweep)
app.add_typer(data, name="data")
