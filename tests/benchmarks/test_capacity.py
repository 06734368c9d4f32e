"""The capacity sheet is what its measurement and arithmetic say."""

import json
from pathlib import Path

from benchmarks.capacity import FILE, sheet

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_tables_of_the_measurement() -> None:
    measured = json.loads((ROOT / FILE).read_text())
    assert sheet(measured) in (ROOT / "docs/capacity.md").read_text()


def test_replicas_follow_from_service_times() -> None:
    level = dict.fromkeys(("requests_per_s", "p50_ms", "p99_ms"), 1.0) | {"gateway_cpu_ms": 10, "triton_cpu_ms": 40}
    lines = sheet({"clients": {"1": level}, "request_bytes": 1000, "triton_request_bytes": 125_000}).splitlines()
    # 1 core / 10 ms = 100/s and 4 cores / 40 ms = 100/s, of which 60 are counted on: 1,000 / 60 = 16.7
    assert next(line for line in lines if line.startswith("| 1,000 |")).startswith("| 1,000 | 17 | 17 |")
    assert next(line for line in lines if line.startswith("| 10 |")).startswith("| 10 | 2 | 2 |")
    assert "| NIC of 10 Gbit/s | 1.25 GB / 125 kB to Triton | 10,000 | 6,000 |" in lines
