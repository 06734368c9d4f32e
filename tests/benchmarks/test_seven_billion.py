"""The script that measures LLaVA-1.5-7B's shape on a GPU, rehearsed on the CPU in tiny widths."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import seven_billion
from benchmarks.seven_billion import PARTS, verdicts


def measured(path: str, expressions: int, ms: float) -> dict[str, object]:
    return {"path": path, "expressions": expressions, "p50": ms}


def test_each_way_to_run_the_model_is_held_against_the_goals() -> None:
    rows = [measured(*case) for case in (("fast", 1, 16), ("slow", 1, 20), ("fast", 8, 40), ("slow", 8, 32))]
    assert [(row["path"], row["what"], round(row["found"], 2), row["met"]) for row in verdicts(rows)] == [
        ("fast", "ms, batch 1", 16, "pass"),
        ("fast", "8 expressions against 8 passes", 3.2, "falls short"),
        ("slow", "ms, batch 1", 20, "falls short"),
        ("slow", "8 expressions against 8 passes", 5, "pass"),
    ]


def test_every_part_runs_and_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--tiny", "--layers", "1", "--rounds", "1", "--calls", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["seven_billion", str(tmp_path / "work"), *given])
    seven_billion.main()
    assert len(PARTS) == 12
    found = {name: json.loads((tmp_path / "out" / f"seven_billion_{name}.json").read_text()) for name in PARTS}
    tables = {name: report["tables"] for name, report in found.items()}
    for name in ("vision", "language_one", "language_eight", "language_batch", "generator_prefill", "generator_pass"):
        for row in tables[name]["graph against PyTorch fp16"]:
            assert row[next(key for key in row if key.startswith("largest"))] < 0.01 * row["range"]
    for weights in ("int8", "int4"):  # they have other weights than PyTorch's
        for row in tables[f"language_{weights}"]["graph against PyTorch fp16"]:
            assert 0 < row["largest difference"] < 0.1 * row["range"]
    for row in tables["ensemble"]["milliseconds a pass"]:
        assert row["p50"] > 0
    places = {(row["tensor"], row["seen as"]): row["met"] for row in tables["device_features"].popitem()[1]}
    assert places.keys() >= {("image_features", "input"), ("image_features", "output")}
    assert set(places.values()) == {"pass"}
