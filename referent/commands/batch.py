"""`referent batch`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from referent.client.address import DEFAULT_URL
from referent.client.batch import BatchItem, ResultsFile, ask, check_outputs, read_items, read_results
from referent.client.coco import write_coco
from referent.client.failures import ServiceError, ServiceUnreachableError
from referent.client.formats import write_csv, write_pictures, write_yolo
from referent.client.http import AsyncClient
from referent.client.progress import progress_bar
from referent.commands.options import KEY, MAX_INSTANCES, MODEL, URL
from referent.commands.terminal import failure
from referent.core.files import printable

INTERRUPTED = 130  # the exit status that shells report after Ctrl-C


def batch(
    source: Annotated[Path, typer.Argument(help="Folder of images, or a list of them: .txt, .csv or .jsonl.")],
    out: Annotated[Path, typer.Option(help="File of results, JSON lines; what it already has is not asked again.")],
    expressions: Annotated[
        list[str] | None, typer.Argument(help="What to look for in images for which the list has no expression.")
    ] = None,
    url: URL = DEFAULT_URL,
    api_key: KEY = None,
    model: MODEL = None,
    max_instances: MAX_INSTANCES = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    csv: Annotated[Path | None, typer.Option(help="Also write all results in --out to this file as a table.")] = None,
    coco: Annotated[
        Path | None, typer.Option(help="Also write them to this file in COCO's format: boxes, or points as keypoints.")
    ] = None,
    yolo: Annotated[
        Path | None, typer.Option(help="Also write them into this folder as YOLO labels: data.yaml and labels/.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Also write the images into this folder, with the answers drawn.")
    ] = None,
    retry_errors: Annotated[bool, typer.Option(help="Ask again what failed before.")] = False,
) -> None:
    """Ask a running service about many images. After a stop, the same command continues."""

    async def run(items: list[BatchItem], results: ResultsFile, advance: Callable[[], None]) -> None:
        async with AsyncClient(url, api_key=api_key) as client:
            async for _ in ask(client, items, results, concurrency, max_instances):
                advance()

    try:
        items = read_items(source, expressions or [])
        check_outputs(source, items, {"--out": out, "--csv": csv, "--coco": coco}, pictures)
        with ResultsFile(out, model, retry_errors) as results:
            before = sum(item in results for item in items)
            try:
                with progress_bar(len(items), before) as advance:
                    asyncio.run(run(items, results, advance))
            except (KeyboardInterrupt, ServiceUnreachableError, ServiceError) as error:
                done = sum(item in results for item in items)
                typer.echo(f"{done} of {len(items)} are in {out}; the same command continues from there", err=True)
                raise failure(str(error) or "stopped", 1 if str(error) else INTERRUPTED) from error
        also = (
            (csv, write_csv, "rows"), (coco, write_coco, "annotations"), (yolo, write_yolo, "files of labels"),
            (pictures, write_pictures, "pictures"),
        )  # fmt: skip
        for path, write, what in also:
            if path is not None:
                typer.echo(f"{write(read_results(out), path)} {what} -> {printable(str(path))}")
    except (OSError, ValueError) as error:
        raise failure(str(error)) from error
    typer.echo(f"{len(items)} results, {len(items) - before} of them new -> {printable(str(out))}")
    if results.errors:
        raise failure(f"{results.errors} of the results are errors: repeat the command with --retry-errors")
