import csv
import json
from pathlib import Path

from referent.commands.sweep import grid, run_sweep, write_results


def test_the_grid_is_the_published_one() -> None:
    cells = grid([8, 16, 32], [1e-4, 2e-4], [8, 16])
    assert len(set(cells)) == 12
    assert cells[0].name == "rank8-lr0.0001-batch8"
    assert cells[0].options[:4] == ["--lora-rank", "8", "--lora-alpha", "16"]


def test_finished_cells_are_not_run_again_and_results_come_best_first(tmp_path: Path) -> None:
    cells = grid([8, 16], [2e-4], [8])
    for cell, iou in zip(cells, (0.25, 0.5), strict=True):
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "result.json").write_text(json.dumps({"mean_iou": iou, "best_step": 7}))
    results = list(run_sweep(cells, ["no such mode"], tmp_path))  # would fail if it ran
    write_results(results, tmp_path)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["rank"] for row in rows] == ["16", "8"]
    assert "| 16 | 0.0002 | 8 | 0.5 |" in (tmp_path / "sweep.md").read_text()
    assert (tmp_path / "sweep.png").stat().st_size > 1000
