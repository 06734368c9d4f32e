import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from referent.data.pickles import PickleError, load_pickle


class Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plain_rows_and_numpy_are_read(tmp_path: Path, protocol: int) -> None:
    rows = [{"bbox": np.array([0.5, 0.25], np.float32), "n": np.int64(3), "text": "cup", "tags": {"x"}}]
    (tmp_path / "rows.p").write_bytes(pickle.dumps(rows, protocol))
    assert load_pickle(tmp_path / "rows.p") == [{"bbox": [0.5, 0.25], "n": 3, "text": "cup", "tags": ["x"]}]


def test_strings_of_python_2_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa.")
    assert load_pickle(tmp_path / "rows.p") == [{"sent": "caf\xe9"}]


def test_a_global_that_rows_do_not_need_is_named_and_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.p").write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(PickleError, match=r"rows\.p is not read: it names posix\.mkdir"):
        load_pickle(tmp_path / "rows.p")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1, 2, 3])[:-4]])
def test_a_damaged_pickle_is_an_error_in_words(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rows.p").write_bytes(data)
    with pytest.raises(PickleError, match="not a readable pickle"):
        load_pickle(tmp_path / "rows.p")
