from pathlib import Path

import pytest

from referent.data.image_files import decoded_size, upright_size
from referent.data.records import RowError


@pytest.mark.parametrize("size_of", [upright_size, decoded_size])
def test_sizes_are_those_that_a_viewer_shows(images: Path, size_of) -> None:
    sizes = {name: size_of(images / name) for name in ("wide.jpg", "tall.jpg", "turned.jpg")}
    assert sizes == {"wide.jpg": (200, 100), "tall.jpg": (100, 200), "turned.jpg": (100, 200)}


@pytest.mark.parametrize("size_of", [upright_size, decoded_size])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.jpg", "missing image"),
        (".", "missing image"),
        ("text.jpg", "image cannot be decoded"),
        ("\0", "image cannot be decoded"),
    ],
)
def test_a_file_without_a_size_is_named(images: Path, size_of, name: str, reason: str) -> None:
    (images / "text.jpg").write_text("no image")
    with pytest.raises(RowError, match=reason):
        size_of(images / name)


def test_a_truncated_jpeg_shows_only_when_it_is_decoded(images: Path) -> None:
    whole = (images / "wide.jpg").read_bytes()
    (images / "half.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    assert upright_size(images / "half.jpg") == (200, 100)
    with pytest.raises(RowError, match="image cannot be decoded"):
        decoded_size(images / "half.jpg")
