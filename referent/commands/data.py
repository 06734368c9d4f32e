"""Commands on data: referent data --help"""

import math
import os
from concurrent.futures import BrokenExecutor
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

import typer

from referent.commands.installation import needs
from referent.commands.terminal import failure

app = typer.Typer(help="Prepare your own or published data, or generate scenes.", no_args_is_help=True)

TRAINING_MIX = "photo=.3,cut=.15,icons=.25,crowd=.06,alike=.12,rows=.12"


Split = Literal["train", "val", "test"]  # of the card photographs and of the seeds


class Set(StrEnum):
    """The sets that `scenes` can write; typer takes no list of literals."""

    mix = "mix"
    scenes = "scenes"
    unseen_style = "unseen_style"
    val_style = "val_style"
    several = "several"
    cards = "cards"
    several_cards = "several_cards"


@app.command()
@needs("preparing data", "evaluate")
def prepare(
    format: Annotated[
        str,
        typer.Argument(
            help="jsonl, csv, coco, yolo, voc, label-studio, conversations, pixmo, refer, refcoco, rec, referit, "
            "gseval, grefcoco or refdrone."
        ),
    ],
    annotations: Annotated[list[Path], typer.Argument(help="Annotation files, or a folder if the format has one.")],
    out: Annotated[Path, typer.Option(help="Folder for SPLIT.jsonl and stats.json.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; each is decoded once.", show_default="none is checked")
    ] = None,
    split_shares: Annotated[
        str | None,
        typer.Option(help="Split by image, such as train=.9,val=.1.", show_default="the source's own splits"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of --split-shares.")] = 0,
    strict: Annotated[bool, typer.Option(help="Stop at the first sample that can't be used.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Write at most this many records.", show_default="all")
    ] = None,
    urls: Annotated[bool, typer.Option(help="First download the rows' images by URL into --images (pixmo).")] = False,
    max_file_mb: Annotated[float, typer.Option(min=0.001, help="Limit of one download.")] = 20,
    max_total_gb: Annotated[float, typer.Option(min=0.001, help="Limit of all downloads in --images.")] = 50,
    deadline_s: Annotated[float, typer.Option(min=0.1, help="Limit of one download.")] = 30,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Downloads at a time.")] = 16,
) -> None:
    """Convert annotations into Referent's records; samples that can't be used are left out and counted by reason."""
    try:
        from referent.data.downloads import DownloadLimits
        from referent.data.preparation import PreparationOptions, fetch_images
        from referent.data.preparation import prepare as prepare_dataset

        if urls:
            limits = DownloadLimits(round(max_file_mb * 1e6), round(max_total_gb * 1e9), deadline_s, concurrency)
            _print_counts("download", fetch_images(format, annotations, images, limits))
        shares = parse_shares(split_shares) if split_shares else None
        stats = prepare_dataset(format, annotations, images, out, PreparationOptions(shares, seed, strict, limit))
    except (OSError, ValueError) as error:
        raise failure(str(error)) from error
    _print_stats(stats, out)


@app.command()
@needs("generating scenes", "train")
def scenes(
    artwork: Annotated[Path, typer.Option(help="artwork.npz of referent.mini.artwork.")],
    cards: Annotated[Path, typer.Option(help="Folder of card photographs with labels.csv.")],
    split_file: Annotated[Path, typer.Option(help="CSV from referent.mini.cards: the split of each photograph.")],
    split: Annotated[Split, typer.Option(help="Which photographs and seeds.")],
    out: Annotated[Path, typer.Option(help="Folder for images/, SPLIT.jsonl and SPLIT.json.")],
    sets: Annotated[
        list[Set] | None,
        typer.Option("--set", help="Which set; can be given several times.", show_default="mix"),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images in each set; cards always has all of the split.")] = 400,
    mix: Annotated[str, typer.Option(help="Share of each kind of scene in the set mix.")] = TRAINING_MIX,
    several: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the expressions of mix that mean several objects.")
    ] = 0,
    backgrounds: Annotated[
        Path | None, typer.Option(help="Folder of background photographs, only for training.")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Random seed of the scenes.", show_default="the split")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one per core")] = None,
) -> None:
    """Generate the scenes for training and evaluating mini: images and records.

    mix is for training. scenes has icons in the styles of training; unseen_style and val_style have the styles of test
    and validation, which training never uses. cards has the photographs unchanged. several and several_cards are
    scenes and photographs with expressions that mean several objects, or none.
    """
    try:
        from referent.core.files import md5
        from referent.mini.icons import Materials
        from referent.mini.rendering import PHOTOGRAPHS, SceneSet, render
        from referent.mini.scenes import SCENE_KINDS

        if backgrounds and split != "train":
            raise ValueError(f"--backgrounds is only for training: leave it out with --split {split}")
        shares = parse_shares(mix, SCENE_KINDS)
        names = sets or [Set.mix]
        materials = Materials.load(artwork, backgrounds, cards, split_file, split)
        chosen = [
            SceneSet.model_validate(
                {
                    "name": name.value,
                    "count": len(materials.photos) if name in PHOTOGRAPHS else count,
                    "seed": seed or split,
                    "mix": shares if name == Set.mix else {},
                    "several": several if name == Set.mix else 0,
                }
            )
            for name in dict.fromkeys(names)
        ]
        sources = {"artwork_md5": md5(artwork), "split_file_md5": md5(split_file)}
        sources["background_photographs"] = str(len(materials.backgrounds))
        report = render(materials, chosen, split, out, sources, workers or os.cpu_count() or 1)
    except KeyError as error:
        raise failure(f"--artwork, --cards or --split-file lacks {error}") from error
    except (OSError, ValueError, BadZipFile, BrokenExecutor) as error:
        raise failure(str(error)) from error
    records, absent = report["statistics"]["records"], report["statistics"]["absent_share"]
    typer.echo(f"{records} records ({absent:.0%} absent) -> {out / split}.jsonl")
    _print_counts("kind", report["statistics"]["kinds"])
    _print_counts("referents", report["statistics"]["referents"])


def _print_counts(title: str, counts: dict[str, int]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title, "count")
    for name, count in counts.items():
        table.add_row(escape(name), str(count))
    Console().print(table)


def _print_stats(stats: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from referent.data.readers import READERS
    from referent.data.records import WRONG_SCHEMA

    table = Table("split", "records", "absent", "several", "mean box area", "mean image", title=str(out))
    for name, split in stats["splits"].items():
        area, sides = split["box_area_share"], (split["image_width_px"], split["image_height_px"])
        table.add_row(
            name,
            str(split["records"]),
            f"{split['absent_share']:.0%}",
            str(sum(count for number, count in split["referents"].items() if number not in ("0", "1"))),
            f"{area['mean']:.1%}" if area else "",
            "x".join(f"{side['mean']:.0f}" for side in sides),
        )
    Console().print(table)
    if stats["rejected"]:
        places = {reason: f"{reason}: {', '.join(found['such_as'])}" for reason, found in stats["rejected"].items()}
        _print_counts(
            "left out, such as", {places[reason]: found["count"] for reason, found in stats["rejected"].items()}
        )
        if any(reason.startswith(WRONG_SCHEMA) for reason in stats["rejected"]):
            typer.echo(f"{stats['format']} expects {READERS[stats['format']].expects}")
    if not stats["images_checked"]:
        typer.echo("no image was looked at: give --images to leave out missing and broken ones")


def parse_shares(text: str, known: tuple[str, ...] | None = None) -> dict[str, float]:
    """ "a=.9,b=.1" -> shares, in order. Raises `ValueError` unless the names are `known` and the shares add up to 1."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        if not name.isidentifier() or name in shares or (known and name not in known):
            raise ValueError(
                f"{part!r} in {text!r}: name {', '.join(known or ('each split',))} once at most, as NAME=.9"
            )
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise ValueError(f"{part!r} in {text!r} has no share; write NAME=.9") from error
    total = sum(shares.values())
    if min(shares.values()) < 0 or not math.isclose(total, 1):
        raise ValueError(f"the shares {text!r} add up to {total:g}; they must be positive and add up to 1")
    return shares
