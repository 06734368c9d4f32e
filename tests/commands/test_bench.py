import pytest

from tests.support.commands import cells, run


def test_benchmarks_are_listed_and_run(capfd: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run("bench")
    assert code == 0
    assert "stages" in {row[0] for row in cells(output)}
    assert run("bench", "stages", "--help")[0] == 0
    assert "--rounds" in capfd.readouterr().out  # the script's own options
    code, _, errors = run("bench", "speed")
    assert (code, "no benchmark 'speed'; there are: " in errors) == (1, True)
