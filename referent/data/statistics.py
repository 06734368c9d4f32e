"""Statistics of records, which are added one at a time, in constant memory."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from referent.data.records import Record

SIDE_BINS = (128, 256, 384, 512, 640, 1024, 2048)  # upper edges in pixels of the histogram of longer sides
MOST_REFERENTS = 6  # this many and more are counted together
AREA_BINS = (0.01, 0.05, 0.2, 0.5, 1.0)  # upper edges of box areas, as shares of the image


@dataclass
class Range:
    """Smallest, mean and largest of a stream of numbers."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        """Take one in."""
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    def summary(self) -> dict[str, float] | None:
        """None if no number was added."""
        if not self.count:
            return None
        return {"min": round(self.low, 4), "mean": round(self.total / self.count, 4), "max": round(self.high, 4)}


@dataclass
class Statistics:
    """Statistics of the records of one split. Image sizes are counted for each record, not for each image."""

    records: int = 0
    absent: int = 0
    with_box: int = 0
    with_points: int = 0
    referents: Counter[int] = field(default_factory=Counter)  # records by the number of objects that they mean
    kinds: Counter[str] = field(default_factory=Counter)  # records by the tag of that name
    width: Range = field(default_factory=Range)
    height: Range = field(default_factory=Range)
    words: Range = field(default_factory=Range)
    box_area: Range = field(default_factory=Range)
    longer_sides: Counter[str] = field(default_factory=Counter)
    box_areas: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Take one in."""
        self.records += 1
        self.absent += not record.present
        self.with_box += bool(record.boxes)
        self.with_points += bool(record.points)
        self.referents[min(len(record.boxes or record.points or ()), MOST_REFERENTS)] += 1
        if "kind" in record.tags:
            self.kinds[record.tags["kind"]] += 1
        self.width.add(record.width)
        self.height.add(record.height)
        self.words.add(len(record.expression.split()))
        self.longer_sides[_bin(max(record.width, record.height), SIDE_BINS)] += 1
        for x1, y1, x2, y2 in record.boxes:
            share = (x2 - x1) * (y2 - y1) / (record.width * record.height)
            self.box_area.add(share)
            self.box_areas[_bin(share, AREA_BINS)] += 1

    def summary(self) -> dict[str, Any]:
        """For stats.json."""
        return {
            "records": self.records,
            "with_box": self.with_box,
            "with_points": self.with_points,
            "absent": self.absent,
            "absent_share": round(self.absent / self.records, 4) if self.records else 0.0,
            "referents": {
                f"{MOST_REFERENTS} or more" if count == MOST_REFERENTS else str(count): self.referents[count]
                for count in sorted(self.referents)
            },
            "kinds": dict(self.kinds.most_common()),
            "image_width_px": self.width.summary(),
            "image_height_px": self.height.summary(),
            "image_longer_side_px": _in_order(self.longer_sides, SIDE_BINS),
            "box_area_share": self.box_area.summary(),
            "box_area_shares": _in_order(self.box_areas, AREA_BINS),
            "expression_words": self.words.summary(),
        }


def _bin(value: float, edges: tuple[float, ...]) -> str:
    return next((f"<={edge}" for edge in edges if value <= edge), f">{edges[-1]}")


def _in_order(counts: Counter[str], edges: tuple[float, ...]) -> dict[str, int]:
    return {name: counts[name] for name in [*(f"<={edge}" for edge in edges), f">{edges[-1]}"] if counts[name]}
