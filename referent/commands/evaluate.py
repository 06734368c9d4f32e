"""`referent evaluate`."""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from referent.commands.installation import needs
from referent.commands.options import KEY, MAX_INSTANCES
from referent.commands.terminal import failure

if TYPE_CHECKING:
    from referent.data.records import Record
    from referent.evaluation.predictions import Prediction


@needs("evaluating", "evaluate")
def evaluate(
    format: Annotated[str, typer.Argument(help="Annotation format: jsonl, refer, refcoco, rec, referit, gseval ...")],
    annotations: Annotated[Path, typer.Option(help="Annotation file, or a folder if the format has one.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Predict with the model of this directory.")] = None,
    url: Annotated[str | None, typer.Option(help="Predict with the service at this URL.")] = None,
    api_key: KEY = None,
    predictions: Annotated[Path | None, typer.Option(help="Take the predictions of this JSON-lines file.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the service.", show_default="the service's")] = None,
    max_instances: MAX_INSTANCES = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the service at a time.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass of the checkpoint.")] = 8,
    split: Annotated[str | None, typer.Option(help="Use only this split.", show_default="all")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first records, this many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a report into a new folder below this one.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.", show_default="the format")] = None,
    record: Annotated[str | None, typer.Option(help="Write the figures into the checkpoint under this name.")] = None,
) -> None:
    """Judge a model: compare predictions of a checkpoint, a running service or a file with annotations.

    A missing or invalid prediction is a miss in every figure.
    """
    sources = {"--checkpoint": checkpoint, "--url": url, "--predictions": predictions}
    given = [option for option, value in sources.items() if value is not None]
    if len(given) != 1:
        which = f"{' and '.join(given)} exclude each other" if given else "nothing to evaluate"
        raise failure(f"{which}: give one of {', '.join(sources)}", 2)
    if images is None and predictions is None:
        raise failure(f"{given[0]} needs the images: give --images DIR", 2)
    if max_instances and url is None:
        raise failure("--max-instances is for a service: give --url URL", 2)
    if record and checkpoint is None:
        raise failure("--record writes into a checkpoint: give --checkpoint DIR", 2)
    if checkpoint:
        with needs("evaluating a checkpoint", "train"):
            import referent.modeling.grounder  # noqa: F401
    try:
        from referent import __version__
        from referent.core.provenance import commit, digest_of
        from referent.evaluation.analysis import analyse
        from referent.evaluation.evaluate import join
        from referent.evaluation.report import write_report
        from referent.evaluation.tables import console, tables

        records, rejected = _read(format, annotations, images, split, limit)
        if predictions is not None:
            from referent.evaluation.predictions import read_predictions

            found: Iterable[Prediction] = read_predictions(predictions)
            judged: dict[str, str | None] = {"digest": digest_of(predictions)}
        elif checkpoint is not None:
            found = _ask_checkpoint(checkpoint, records, images, batch)
            judged = _of_checkpoint(checkpoint)
        else:
            judged = _of_service(url, api_key, model)
            found = _ask_service(url, api_key, records, images, judged["model"], max_instances, concurrency)
        results = join(records, found)
        reasons = [prediction.error if prediction else None for prediction in results.predictions]
        if all(reasons):
            raise ValueError(f"nothing could be asked: {reasons[0]}")
        run = {
            "name": name or format, "date": f"{datetime.now():%Y-%m-%d %H:%M}",
            "source": f"{given[0]} {sources[given[0]]}", **judged, "latency": _clock(given[0], batch, concurrency),
            "format": format, "annotations": str(annotations), "annotations_digest": digest_of(annotations),
            "images": str(images.resolve()) if images else None, "split": split, "limit": limit,
            "max_instances": max_instances,
            "rejected": dict(rejected), "referent": __version__, "evaluation_commit": commit(),
        }  # fmt: skip
        figures = analyse(results)
        if record:
            _record(checkpoint, record, figures["summary"])
        folder = write_report(out, run, figures, results, images) if out else None
    except (RuntimeError, ValueError, OSError) as error:
        raise failure(str(error)) from error
    if as_json:
        typer.echo(json.dumps({"run": run} | figures, indent=2))
    else:
        for table in tables(figures)[:4]:
            Console().print(console(table))
    for reason, count in rejected.items():
        typer.echo(f"left out: {count} {reason}", err=True)
    if folder:
        typer.echo(f"report: {folder / 'report.html'}", err=True)


def _read(
    format: str, annotations: Path, images: Path | None, split: str | None, limit: int | None
) -> tuple["list[Record]", Counter[str]]:
    from referent.data.readers import read
    from referent.data.records import Rejected

    records, rejected, splits = [], Counter[str](), set()
    for item in read(format, annotations, images):
        if isinstance(item, Rejected):
            rejected[item.reason] += 1
        elif split in (None, item.split):
            records.append(item)
        else:
            splits.add(item.split)
        if len(records) == limit:
            break
    if not records:
        if splits:
            raise ValueError(f"{annotations} has no split {split!r}; it has {', '.join(sorted(splits))}")
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        raise ValueError(f"{annotations} has no records" + (f"; left out: {reasons}" if reasons else ""))
    return records, rejected


def _ask_checkpoint(directory: Path, records: "list[Record]", images: Path, batch: int) -> "Iterable[Prediction]":
    from tqdm import tqdm

    from referent.evaluation.predictors import ask_checkpoint
    from referent.modeling.grounder import load_grounder

    answers = ask_checkpoint(load_grounder(directory), records, images, batch)
    return tqdm(answers, total=len(records), desc=directory.name)


def _ask_service(
    url: str,
    api_key: str | None,
    records: "list[Record]",
    images: Path,
    model: str | None,
    max_instances: int | None,
    concurrency: int,
) -> "Iterable[Prediction]":
    from tqdm import tqdm

    from referent.client.http import Client
    from referent.evaluation.predictors import ask_service

    with Client(url, api_key=api_key) as client:
        answers = ask_service(client, records, images, model, max_instances, concurrency)
        return list(tqdm(answers, total=len(records), desc=url))


def _of_checkpoint(directory: Path) -> dict[str, str | None]:
    """What is evaluated: a checkpoint's name, the digest of its files, and the commit that trained it."""
    from referent.core.provenance import digest_of
    from referent.modeling.checkpoint import load_checkpoint_spec

    training = load_checkpoint_spec(directory).training
    name, digest = directory.resolve().name, digest_of(directory)
    return {"model": name, "digest": digest, "training_commit": training.get("commit")}


def _of_service(url: str, api_key: str | None, model: str | None) -> dict[str, str | None]:
    """What is evaluated: a served model, its version and digest. Raises ValueError if it is not served."""
    from referent.client.http import Client

    with Client(url, api_key=api_key) as client:
        served = client.models()
    for entry in served:
        if entry.name == model or (model is None and entry.default):
            return {"model": entry.name, "version": entry.version, "digest": entry.digest}
    names = ", ".join(entry.name for entry in served) or "none"
    raise ValueError(f"{url} does not serve {model or 'a default model'}; it serves {names}")


def _clock(source: str, batch: int, concurrency: int) -> str:
    return {
        "--checkpoint": f"in this process, {batch} images a pass, a pass's time over its images",
        "--url": f"round trip of a request, {concurrency} at a time",
        "--predictions": "as the file has it",
    }[source]


def _record(checkpoint: Path, name: str, summary: dict[str, Any]) -> None:
    """Writes the figures into referent.json, without the threshold, which belongs to validation data, not this set."""
    from referent.modeling.checkpoint import SPEC_FILE, CheckpointSpec

    file = checkpoint / SPEC_FILE
    spec = CheckpointSpec.model_validate_json(file.read_text())
    figures = {key: value for key, value in summary.items() if key != "present_threshold"}
    updated = spec.model_copy(update={"evaluation": spec.evaluation | {name: figures}})
    file.write_text(updated.model_dump_json(indent=2) + "\n")
