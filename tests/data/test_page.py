"""docs/data.md shows an example of each format; each is read as it stands there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from referent.data.downloads import cached_name
from referent.data.readers import READERS, read
from referent.data.records import Record

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
CUP = (20, 10, 60, 50)  # where the page's cup is, in 200 x 100 pixels
FILES = {
    "jsonl": "rows.jsonl", "csv": "labels.csv", "coco": "coco.json", "voc": "a.xml", "label-studio": "export.json",
    "conversations": "rows.jsonl", "pixmo": "rows.jsonl", "refcoco": "rows.jsonl", "rec": "rows.jsonl",
    "gseval": "rows.jsonl", "refdrone": "drone.json",
}  # fmt: skip
IN_TEXT = {"refer", "referit", "grefcoco"}  # folders of other projects, which nobody writes by hand


@pytest.fixture
def sections() -> dict[str, str]:
    """Of the formats, by name."""
    _, *parts = re.split(r"^### (.+)$", PAGE.read_text().partition("\n## Formats\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(section: str) -> list[str]:
    return re.findall(r"^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_every_format_has_its_section(sections: dict[str, str]) -> None:
    assert sections.keys() == READERS.keys()
    assert {name for name, section in sections.items() if not blocks(section)} == IN_TEXT


@pytest.mark.parametrize("format", [*FILES, "yolo"])
def test_the_example_is_read(format: str, sections: dict[str, str], tmp_path: Path) -> None:
    name = {"yolo": "images/train/a.jpg", "pixmo": cached_name("https://example.org/a.jpg")}.get(format, "a.jpg")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100)).save(tmp_path / name, "JPEG")
    annotations = WRITERS.get(format, one_file)(tmp_path, format, blocks(sections[format]))
    found = list(read(format, annotations, tmp_path))
    assert found
    assert not [item for item in found if not isinstance(item, Record)]
    if format == "pixmo":
        assert found[0].points == ((40, 30),)
    elif format != "gseval":  # its mask is of four pixels
        cups = [item.box_xyxy for item in found if re.fullmatch("(find )?(the )?(red )?cup", item.expression)]
        assert cups
        assert all(box == pytest.approx(CUP) for box in cups)


def one_file(folder: Path, format: str, blocks: list[str]) -> Path:
    (text,) = blocks
    (folder / FILES[format]).write_text(text)
    return folder / FILES[format]


def voc(folder: Path, format: str, blocks: list[str]) -> Path:
    return one_file(folder, format, blocks).parent


def yolo(folder: Path, format: str, blocks: list[str]) -> Path:
    config, labels = blocks
    (folder / "data.yaml").write_text(config)
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text(labels)
    return folder / "data.yaml"


WRITERS: dict[str, Callable[[Path, str, list[str]], Path]] = {"voc": voc, "yolo": yolo}
