import json
from pathlib import Path

import numpy as np
import pytest

from referent.mini.artwork import ICONIFY, INK_STYLES, TRAIN_STYLES, UNSEEN_STYLE, VALIDATION_STYLE, drawer

SQUARE = '<path d="M4 4h16v16H4z" fill="currentColor"/>'
RING = '<path d="M4 4h16v16H4zM8 8v8h8V8z" fill-rule="evenodd" fill="currentColor"/>'
RED = '<path d="M0 0h12v24H0z" fill="#f00"/>'


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Two packages of Iconify: names of emoji, and icons."""

    def package(name: str, **contents: object) -> None:
        folder = tmp_path / f"iconify-json-{name}-1.0.0" / "package"
        folder.mkdir(parents=True)
        for file, content in contents.items():
            (folder / f"{file}.json").write_text(json.dumps(content))

    package(
        "noto", chars={"1f436": "dog-face", "1f431": "cat-face", "1f42d": "mouse-face", "1f98a": "fox", "1f43b": "bear"}
    )
    package(
        "ph",
        icons={
            "width": 24, "height": 24,
            "icons": {"dog": {"body": RED}, "cat-face": {"body": RING}, "mouse": {"body": SQUARE},
                      "fox-face-1": {"body": SQUARE}},
            "aliases": {"bear-face": {"parent": "fox-face-1"}},
        },
    )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(("name", "emoji"), [("dog", "🐶"), ("cat", "🐱"), ("fox", "🦊"), ("bear", "🐻")])
def test_an_icon_is_found_by_its_name_the_emojis_or_an_alias(downloads: Path, name: str, emoji: str) -> None:
    assert drawer(downloads, "phosphor")(name, emoji) is not None


def test_an_icon_that_shows_something_else_is_left_out(downloads: Path) -> None:
    assert drawer(downloads, "phosphor")("mouse", "🐭") is None  # Phosphor's is a computer's


def test_ink_is_black_on_the_white_that_it_encloses(downloads: Path) -> None:
    icon = drawer(downloads, "phosphor")("cat", "🐱")
    assert icon is not None
    pixels = np.asarray(icon)
    assert pixels.shape[:2] == (108, 108)  # 16 of 24 units, at 160 px for 24
    assert pixels[5, 5].tolist() == [0, 0, 0, 255]
    assert pixels[53, 53].tolist() == [255, 255, 255, 255]


def test_a_package_that_is_missing_is_named(downloads: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has 0 of iconify-json-lucide"):
        drawer(downloads, "lucide")


def test_no_style_that_is_judged_is_trained_on() -> None:
    assert not {UNSEEN_STYLE, VALIDATION_STYLE} & set(TRAIN_STYLES)
    assert {*ICONIFY, *INK_STYLES} - {VALIDATION_STYLE} <= set(TRAIN_STYLES)
    assert not any("twemoji" in package or "openmoji" in package for package in ICONIFY.values())
