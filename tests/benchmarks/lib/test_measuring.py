import json
from pathlib import Path

import pytest

from benchmarks.lib import measuring
from benchmarks.lib.measuring import WARM_UP, Report, alternate, markdown, over_rounds, spread, summary


def test_blocks_alternate_and_their_warm_up_does_not_count() -> None:
    order: list[str] = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, calls=4)
    block = WARM_UP + 4
    assert order == (["a"] * block + ["b"] * block) * 2
    assert [[len(calls) for calls in blocks] for blocks in times.values()] == [[4, 4], [4, 4]]


def test_summary_has_median_tail_and_range() -> None:
    found = summary([float(value) for value in range(101)])
    assert found == {"p50": 50, "p95": 95, "p99": 99, "min": 0, "max": 100}


def test_ratio_is_taken_round_by_round() -> None:
    slow_then_fast, half = [[20.0, 20.0, 99.0], [10.0, 10.0]], [[10.0], [5.0]]
    assert over_rounds(lambda a, b: a / b, slow_then_fast, half) == [2, 2]
    assert spread([1.0, 3.0, 2.0]) == "2.00 (1.00 to 3.00)"


def test_table_has_the_columns_of_all_rows() -> None:
    assert markdown([{"a": 1, "b": 2.34567}, {"a": "x", "c": None}]).splitlines() == [
        "| a | b | c |",
        "|---|---|---|",
        "| 1 | 2.346 |  |",
        "| x |  |  |",
    ]


def test_report_keeps_tables_with_commit_and_hardware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("trial", tmp_path / "out")
    report.add("times", [{"path": "a", "ms": 1.5}])
    report.chart(lambda axes: measuring.lines(axes, [{"x": 1, "y": 2}, {"x": 2}], "x", "y"))
    content = json.loads((tmp_path / "out" / "trial.json").read_text())
    assert content["tables"] == {"times": [{"path": "a", "ms": 1.5}]}
    assert {"date", "command", "commit", "hardware", "versions"} <= content.keys()
    assert (tmp_path / "out" / "trial.png").stat().st_size > 1000
    assert "| a | 1.5 |" in capsys.readouterr().out
