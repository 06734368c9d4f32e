import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from referent.commands.app import app
from referent.core.boxes import Box
from referent.evaluation.analysis import analyse
from referent.evaluation.comparison import ComparisonError, compare, load_runs
from referent.evaluation.report import write_report
from tests.support.scored import BOX, FAR, HALF, record, results


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run over records "0", "1" and so on, whose true box is BOX."""

    def write(name: str, *boxes: Box | None, image: str = "{}.jpg") -> Path:
        pairs = []
        for index, box in enumerate(boxes):
            Image.new("RGB", (100, 100), "white").save(tmp_path / f"{index}.jpg")
            pairs.append((record(str(index), image=image.format(index)), {"box_xyxy": box, "ms": 4.0}))
        found = results(*pairs)
        about = {"name": name, "images": str(tmp_path)}
        return write_report(tmp_path / name, about, analyse(found), found, tmp_path)

    return write


def test_difference_is_paired_and_from_the_first_run(run: Callable[..., Path]) -> None:
    figures = compare(load_runs([run("weak", *[HALF] * 8), run("strong", *[BOX] * 8), run("blind", *[None] * 8)]))
    assert {name: row["difference"] for name, row in figures.items()} == {"weak": 0, "strong": 0.5, "blind": -0.5}
    assert figures["strong"]["difference_interval"] == pytest.approx((0.5, 0.5))
    assert figures["strong"]["latency_ms"] == 4


def test_runs_of_one_name_are_told_apart(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run("model", BOX, BOX)
    other = folder.rename(tmp_path / "older")
    runs = load_runs([other, run("model", BOX, FAR)])
    assert len({run.name for run in runs}) == 2


def test_runs_over_other_records_are_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match=r"other records than a \(1 ids in common of 1 and 2\)"):
        load_runs([run("a", BOX), run("b", BOX, FAR)])
    with pytest.raises(ComparisonError, match="is not a run"):
        load_runs([tmp_path, tmp_path])


def test_command_writes_table_and_picture_grid(run: Callable[..., Path], tmp_path: Path) -> None:
    folders = [run("weak", HALF, FAR, BOX), run("strong", BOX, BOX, BOX)]
    given = ["compare", *map(str, folders), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.stderr
    assert set(json.loads(result.stdout)) == {"weak", "strong"}
    (folder,) = (tmp_path / "out").iterdir()
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg") == 6  # a record a row, a model a column
    assert page.index("weak, IoU 0.000") < page.index("strong, IoU 1.000") < page.index("weak, IoU 0.500")
    assert "| mean_iou | 0.500 (" in (folder / "report.md").read_text()


def test_one_run_is_told(run: Callable[..., Path]) -> None:
    result = CliRunner().invoke(app, ["compare", str(run("a", BOX))])
    assert (result.exit_code, "give two or more" in result.stderr) == (2, True)
