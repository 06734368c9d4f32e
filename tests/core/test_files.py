from pathlib import Path

import pytest

from referent.core.files import atomic


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")

    def break_off() -> None:
        with atomic(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "before")]
