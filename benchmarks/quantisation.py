"""The effect of fp16, int8 and int4 on grounding accuracy: the same model is served in each precision.

    python -m benchmarks.quantisation --set scenes=WORK/scenes --set cards=WORK/cards [--checkpoint DIR]
        [--calibration WORK/data]

A set is a folder with test.jsonl and images/, as `referent data scenes` writes it. With a checkpoint each precision is
exported; without one the graphs that are published as `--model` are rounded as they are, and fp16 is left out. Integers
throughout need `--calibration`, a folder with train.jsonl and images/.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lib.measuring import Report, Row, arguments_of, bars
from benchmarks.lib.service import REPOSITORY, Subject, serve
from export.build import export
from export.graphs import quantize
from export.integers import quantize_throughout, requests
from export.parts import PARTS
from export.publish import republish
from export.quantize import ROUNDINGS
from referent.client.http import Client
from referent.core.bundle import file_entry
from referent.core.contract import part_name
from referent.data.readers import read
from referent.data.records import Record
from referent.evaluation.analysis import analyse
from referent.evaluation.evaluate import join
from referent.evaluation.predictors import ask_service

THROUGHOUT = "int8 throughout"
PRECISIONS = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", None),
    "int8": ("fp32", "int8"),
    "int4": ("fp32", "int4"),
    THROUGHOUT: ("fp32", None),
}  # dtype to compute with, and weights
FIGURES = ("mean_iou", "acc@0.5", "auroc")


def in_precision(
    precision: str, model: str, repository: Path, checkpoint: Path | None, calibration: Path | None, target: Path
) -> bool:
    """Publishes the model in a precision; false if that needs a checkpoint or calibration data that is not given."""
    dtype, weights = PRECISIONS[precision]
    throughout = precision == THROUGHOUT
    ranges = (calibration / "train.jsonl", calibration / "images") if calibration else None
    if throughout and not ranges:
        return False
    if checkpoint:
        export(checkpoint, model, target, dtype, weights=weights, calibration=ranges if throughout else None)
        return True
    subject = Subject(repository, model)
    if dtype != subject.bundle.dtype:
        return False
    parts = PARTS[subject.bundle.kind]
    source = target.with_name(f"{target.name}-source")
    for part in (model, *subject.bundle.parts):
        folder = source / part / subject.bundle.version
        shutil.copytree(repository / part / subject.bundle.version, folder)
    if weights:
        for step in subject.kind.steps:
            if step.suffix in parts.LARGE:
                file = Path(part_name(model, step), subject.bundle.version, "model.onnx")
                (source / file).unlink()
                quantize(repository / file, source / file, ROUNDINGS[weights])
    if throughout and ranges:
        files = []
        for step in subject.kind.steps:
            file = source / part_name(model, step) / subject.bundle.version / "model.onnx"
            (source / step.suffix).mkdir()
            files.append(source / step.suffix / file.name)
            quantize(file, files[-1], None)
        given = requests(*ranges, subject.processor)
        quantize_throughout(files, subject.kind.steps, parts.LARGE, parts.JUDGED, given)
        for step, moved in zip(subject.kind.steps, files, strict=True):
            moved.replace(source / part_name(model, step) / subject.bundle.version / moved.name)
        weights = "int8"
    listed = {relative: file_entry(source / relative) for relative in subject.bundle.files}
    republish(source, model, subject.bundle.version, target, weights=weights, files=listed)
    return True


def judged(url: str, model: str, records: Sequence[Record], images: Path) -> Row:
    """Figures of a service on a set."""
    with Client(url) as client:
        figures = analyse(join(records, ask_service(client, records, images, model)))
    return {"expressions": len(records)} | {name: figures["summary"].get(name) for name in FIGURES}


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FOLDER", dest="sets")
    parser.add_argument("--checkpoint", type=Path, help="to export; default: the published graphs")
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="of train.jsonl, for integers throughout")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    arguments = parser.parse_args()
    sets = {}
    for given in arguments.sets:
        name, _, folder = given.partition("=")
        if not Path(folder, "test.jsonl").is_file():
            parser.error(f"--set {given!r} must be NAME=FOLDER, with test.jsonl and images/ in the folder")
        records = [item for item in read("jsonl", Path(folder, "test.jsonl")) if isinstance(item, Record)]
        sets[name] = records, Path(folder, "images")
    report = Report("quantisation", arguments.out)
    rows: list[Row] = []
    sizes: list[Row] = []
    with tempfile.TemporaryDirectory() as directory:
        for precision in arguments.precision:
            repository = Path(directory, precision.replace(" ", "-"))
            places = arguments.model_repository, arguments.checkpoint, arguments.calibration, repository
            if not in_precision(precision, arguments.model, *places):
                continue
            size = Subject(repository, arguments.model).bundle.size_bytes / 1e6
            sizes.append({"precision": precision, "MB": size})
            with serve(repository, REFERENT_DEFAULT_MODEL=arguments.model) as served:
                for name, (records, images) in sets.items():
                    found = judged(served.url, arguments.model, records, images)
                    rows.append({"set": name, "precision": precision} | found)
                    first = next(row for row in rows if row["set"] == name)
                    if first["mean_iou"] is not None:
                        rows[-1]["lost"] = first["mean_iou"] - rows[-1]["mean_iou"]
                    print(rows[-1], flush=True)
    report.add("accuracy", sorted(rows, key=lambda row: list(sets).index(row["set"])))
    report.add("size of all files", sizes)
    means = {f"{row['set']}, {row['precision']}": row["mean_iou"] for row in rows if row["mean_iou"] is not None}
    report.chart(lambda axes: bars(axes, means, "mean IoU"))


if __name__ == "__main__":
    main()
