import json
from pathlib import Path

import pytest

from tests.support.answers import SERVED_MODEL
from tests.support.commands import cells, run


@pytest.mark.usefixtures("asked")
def test_models_are_listed_with_their_figures() -> None:
    code, output, _ = run("models")
    assert code == 0
    assert "default: mini" in output
    assert cells(output) == [
        ["mini", "3", "yes", "cards", "171", "0.843", "0.947", ""],
        ["mini", "3", "yes", "scenes", "9", "", "", "0.996"],
    ]
    assert json.loads(run("models", "--json")[1]) == [SERVED_MODEL]


@pytest.mark.parametrize("command", [["models"], ["demo"], ["ground", "a.jpg", "a"], ["batch", ".", "a", "--out", "o"]])
def test_a_key_that_no_header_holds_is_refused_in_a_line_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").touch()
    code, output, errors = run(*command, REFERENT_API_KEY="rf_secr\u00e9t")
    assert (code, "REFERENT_API_KEY" in errors) == (1, True)
    assert "rf_secr" not in output + errors
