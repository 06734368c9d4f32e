"""referent evaluate, over files and a checkpoint; its report in test_report.py."""

import json
import subprocess
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from shutil import copytree

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from referent import __version__
from referent.client.http import Client
from referent.commands.app import app
from referent.core.api import EXAMPLE
from referent.core.provenance import digest_of
from referent.data.records import write_records
from tests.support.answers import SERVED_MODEL, box_answer
from tests.support.scored import BOX, HALF, record


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Six records of three images, in two splits; one row is broken."""
    records = [
        record(str(i), image=f"{i // 2}.jpg", split="val" if i < 2 else "test", tags={"kind": "name"}) for i in range(5)
    ]
    write_records(tmp_path / "records.jsonl", [*records, record("5", None, image="2.jpg")])
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"id": "6"}\n')
    for i in range(3):
        Image.new("RGB", (100, 100), ("red", "green", "blue")[i]).save(tmp_path / f"{i}.jpg")
    return tmp_path / "records.jsonl"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    rows = [{"id": str(i), "box_xyxy": box, "score": 0.5} for i, box in enumerate((BOX, HALF, None, BOX))]
    (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "predictions.jsonl"


def run(*arguments: object, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"} | environment)
    return result.exit_code, result.stdout, result.stderr


def test_json_has_all_figures_and_what_was_left_out(annotations: Path, predictions: Path) -> None:
    code, output, errors = run(
        "evaluate", "jsonl", "--annotations", annotations, "--predictions", predictions, "--json"
    )
    assert code == 0, errors
    answer = json.loads(output)
    assert answer["run"]["rejected"] == {"wrong schema: image": 1}
    assert (answer["summary"]["n"], answer["summary"]["missing"], answer["summary"]["invalid"]) == (5, 1, 1)
    assert answer["summary"]["acc@0.5"] == pytest.approx(3 / 5)
    assert {name: row["n"] for name, row in answer["groups"]["split"].items()} == {"val": 2, "test": 3}
    assert "left out: 1 wrong schema: image" in errors
    assert answer["run"]["annotations_digest"] == f"sha256:{sha256(annotations.read_bytes()).hexdigest()}"
    assert answer["run"]["digest"] == f"sha256:{sha256(predictions.read_bytes()).hexdigest()}"
    assert answer["run"]["referent"] == __version__


def test_table_shows_model_and_baselines(annotations: Path, predictions: Path) -> None:
    code, output, errors = run("evaluate", "jsonl", "--annotations", annotations, "--predictions", predictions)
    assert code == 0, errors
    assert [name for name in ("prediction", "centre box", "whole image") if name not in output] == []
    assert "0.600" in output


def test_split_and_limit_choose_records(annotations: Path, predictions: Path) -> None:
    given = ("evaluate", "jsonl", "--annotations", annotations, "--predictions", predictions, "--json")
    assert json.loads(run(*given, "--split", "val")[1])["summary"]["mean_iou"] == 0.75
    assert json.loads(run(*given, "--limit", 1)[1])["summary"]["mean_iou"] == 1


def test_checkpoint_is_judged_and_keeps_its_figures(
    annotations: Path, predictions: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = copytree(tiny_checkpoint, tmp_path / "checkpoint")
    given = ("evaluate", "jsonl", "--annotations", annotations, "--images", tmp_path)
    code, output, errors = run(
        *given, "--checkpoint", checkpoint, "--record", "cups", "--json", "--out", tmp_path / "out"
    )
    assert code == 0, errors
    summary, about = (json.loads(output)[key] for key in ("summary", "run"))
    assert (about["model"], about["digest"]) == ("checkpoint", digest_of(tiny_checkpoint))
    recorded = json.loads((checkpoint / "referent.json").read_text())["evaluation"]["cups"]
    assert recorded == {key: value for key, value in summary.items() if key != "present_threshold"}
    assert {"n", "mean_iou", "acc@0.5", "rmse", "mae", "auroc", "baselines"} <= set(recorded)
    (folder,) = (tmp_path / "out").iterdir()
    again = run(
        *given[:4], "--predictions", folder / "predictions.jsonl", "--json"
    )  # what a run leaves can be rescored
    assert json.loads(again[1])["summary"] == summary


def test_a_served_model_is_named_by_its_version_and_digest(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(
                200, json={"models": [SERVED_MODEL | {"name": "cards", "default": False}, SERVED_MODEL]}
            )
        return httpx.Response(200, json=EXAMPLE | {"results": [box_answer("the cup", BOX, 0.9, True).model_dump()] * 2})

    monkeypatch.setattr("referent.client.http.Client", partial(Client, transport=httpx.MockTransport(answer)))
    given = ("evaluate", "jsonl", "--annotations", annotations, "--images", tmp_path, "--url", "http://127.0.0.1:9")
    code, output, errors = run(*given, "--json", "--out", tmp_path / "out")
    assert code == 0, errors
    about = json.loads(output)["run"]
    assert (about["model"], about["version"], about["digest"]) == ("mini", "3", "sha256:0")
    (page,) = (tmp_path / "out").rglob("report.html")
    assert "<dd>sha256:0</dd>" in page.read_text()
    code, _, errors = run(*given, "--model", "maxi")
    assert (code, "does not serve maxi; it serves cards, mini" in errors) == (1, True)


def test_a_service_that_asks_for_a_key_gets_it(annotations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != "Bearer secret-key":
            return httpx.Response(401, json={"title": "A key is needed", "detail": "this service asks for a key"})
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"models": [SERVED_MODEL]})
        results = [box_answer("it", BOX, 0.9, True).model_dump()] * request.content.count(b'name="expression"')
        return httpx.Response(200, json=EXAMPLE | {"results": results})

    monkeypatch.setattr("referent.client.http.Client", partial(Client, transport=httpx.MockTransport(answer)))
    given = ("evaluate", "jsonl", "--annotations", annotations, "--images", annotations.parent, "--json")
    asked = (*given, "--url", "http://127.0.0.1:8000")
    for code, output, errors in (run(*asked, "--api-key", "secret-key"), run(*asked, REFERENT_API_KEY="secret-key")):
        assert code == 0, errors
        assert json.loads(output)["summary"]["acc@0.5"] > 0.5
    code, _, errors = run(*asked, "--api-key", "another")
    assert code == 1
    assert "this service asks for a key" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--predictions", "predictions.jsonl", "--url", "http://127.0.0.1:9"], 2, "exclude each other"),
        ([], 2, "give one of --checkpoint, --url, --predictions"),
        (["--url", "http://127.0.0.1:9"], 2, "--url needs the images"),
        (["--predictions", "predictions.jsonl", "--record", "x"], 2, "give --checkpoint"),
        (["--predictions", "predictions.jsonl", "--max-instances", "3"], 2, "--max-instances is for a service"),
        (["--url", "http://127.0.0.1:9", "--images", "."], 1, "no answer from http://127.0.0.1:9"),
        (["--checkpoint", "none", "--images", "."], 1, "none"),
        (["--checkpoint", "checkpoint", "--images", "none"], 1, "nothing could be asked: "),
        (["--predictions", "none.jsonl"], 1, "none.jsonl"),
        (["--predictions", "records.jsonl"], 1, "records.jsonl:6: "),
        (["--predictions", "predictions.jsonl", "--split", "train"], 1, "has no split 'train'; it has test, val"),
    ],
    ids=[
        "two sources",
        "none",
        "no images",
        "record what",
        "limit of a file",
        "no service",
        "no checkpoint",
        "no image",
        "no file",
        "schema",
        "split",
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    annotations: Path,
    predictions: Path,
    tiny_checkpoint: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(annotations.parent)
    Path("checkpoint").symlink_to(tiny_checkpoint)
    found, _, errors = run("evaluate", "jsonl", "--annotations", "records.jsonl", *arguments)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (found, message in line) == (code, True), errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("format", "file", "message"),
    [("yaml", "records.jsonl", "unknown format 'yaml'"), ("jsonl", "none.jsonl", "none.jsonl")],
    ids=["format", "missing file"],
)
def test_annotations_that_cannot_be_read_are_told(
    annotations: Path, predictions: Path, format: str, file: str, message: str
) -> None:
    code, _, errors = run("evaluate", format, "--annotations", annotations.parent / file, "--predictions", predictions)
    assert (code, message in errors) == (1, True), errors


def test_predictions_are_scored_without_torch(annotations: Path, predictions: Path) -> None:
    program = (
        "import sys; from referent.commands.evaluate import evaluate; from pathlib import Path; "
        f"evaluate('jsonl', Path({str(annotations)!r}), predictions=Path({str(predictions)!r}), as_json=True); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_gseval_needs_no_images(data_folder: Path) -> None:
    folder = data_folder / "formats/gseval"
    code, output, errors = run(
        "evaluate", "gseval", "--annotations", folder / "GroundingSuite-Eval.jsonl",
        "--predictions", folder / "claude_predictions.jsonl", "--json",
    )  # fmt: skip
    assert code == 0, errors
    answer = json.loads(output)
    assert answer["summary"]["n"] == answer["masks"]["n"] == 3715
    assert set(answer["groups"]["class_id"]) == {"1", "2", "3", "4"}
