import json

import pytest

from tests.support.commands import MODEL, cells, run


@pytest.mark.usefixtures("asked")
def test_models_are_listed_with_their_figures() -> None:
    code, output, _ = run("models")
    assert code == 0
    assert "default: mini" in output
    assert cells(output) == [
        ["mini", "3", "yes", "cards", "171", "0.843", "0.947", ""],
        ["mini", "3", "yes", "scenes", "9", "", "", "0.996"],
    ]
    assert json.loads(run("models", "--json")[1]) == [MODEL]
