"""Points of 1 to 30 things in each of 1,000 pictures, asked of a served generator: is every list whole, and right?

    python -m benchmarks.points --artwork artwork.npz [--model mini-text] [--pictures 1000]

Each picture shows icons of one name and up to six of others. Every third question allows 8 instances, so that longer
lists are cut; the others allow 30. A point is right if it lies in a thing that no other point has.
"""

import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from benchmarks.lib.measuring import Report, Row, arguments_of
from benchmarks.lib.service import REPOSITORY, serve
from referent.client.http import Client
from referent.core.answers import Answer
from referent.core.boxes import Box
from referent.data.plurals import plural
from referent.mini.artwork import load_artwork
from referent.mini.icons import Materials
from referent.mini.scenes import repeated_scene

MOST, FEWER = 30, 8
AT_ONCE = 4  # requests
BANDS = ((1, 1), (2, 8), (9, 16), (17, MOST))
POINT = r'x="\d+\.\d+" y="\d+\.\d+"'
NUMBERED = r'x\d+="\d+\.\d+" y\d+="\d+\.\d+"'
LABEL = r'alt="[^"]*">[^<]*'
WHOLE = re.compile(rf"<point {POINT} {LABEL}</point>|<points( {NUMBERED})+ {LABEL}</points>|none")


class PointedPicture(NamedTuple):
    """A picture, the boxes of what is asked for, and the question."""

    image: Image.Image
    boxes: list[Box]
    expression: str
    max_instances: int


class PointsFound(NamedTuple):
    """What came of a case."""

    things: int
    cut: bool
    points: int
    right: int
    whole: bool
    reason: str | None


def cases(materials: Materials, count: int) -> Iterator[PointedPicture]:
    """PointedPicture k depends on k alone."""
    for index in range(count):
        rng = random.Random(f"points/{index}")
        scene, name = repeated_scene(rng, materials, rng.randint(1, MOST))
        boxes = [box for box, shown in zip(scene.boxes, scene.names, strict=True) if shown == name]
        words = f"the {plural(name) or name}" if len(boxes) > 1 else f"the {name}"
        yield PointedPicture(scene.image, boxes, f"point to {words}", FEWER if index % 3 == 0 else MOST)


def outcome(case: PointedPicture, answer: Answer) -> PointsFound:
    """Points and things are matched one to one."""
    points = np.array([referent.point_xy for referent in answer.referents], np.float64).reshape(-1, 1, 2)
    boxes = np.array(case.boxes, np.float64)
    inside = np.all((points >= boxes[:, :2]) & (points <= boxes[:, 2:]), axis=-1)
    right = int(inside[linear_sum_assignment(inside, maximize=True)].sum())
    whole = WHOLE.fullmatch((answer.text or "").strip()) is not None
    cut = len(case.boxes) > case.max_instances
    return PointsFound(len(case.boxes), cut, len(points), right, whole, answer.finish_reason)


def row(what: str, found: list[PointsFound]) -> Row:
    """Shares over the answers, precision and recall over all points and things."""
    points, things, right = (sum(getattr(each, name) for each in found) for name in ("points", "things", "right"))
    return {
        "things": what, "pictures": len(found), "whole": sum(each.whole for each in found),
        "cut": sum(each.reason == "length" for each in found), "points": points,
        "precision": right / max(1, points), "recall": right / max(1, things),
        "F1": 2 * right / max(1, points + things),
    }  # fmt: skip


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--artwork", type=Path, required=True, help="artwork.npz of referent.mini.artwork")
    parser.add_argument("--model", default="mini-text")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--pictures", type=int, default=1000)
    arguments = parser.parse_args()
    asked = list(cases(Materials(load_artwork(arguments.artwork), [], []), arguments.pictures))
    report = Report("points", arguments.out)
    only = {"REFERENT_MODELS": arguments.model, "REFERENT_DEFAULT_MODEL": arguments.model}
    with serve(arguments.repository, **only) as service, Client(service.url, timeout_s=120) as client:

        def ask(case: PointedPicture) -> PointsFound:
            answer = client.ground(case.image, case.expression, arguments.model, case.max_instances)
            return outcome(case, answer.results[0])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(tqdm(pool.map(ask, asked), total=len(asked), desc="pictures"))
    rows = [row("all", found)]
    for low, high in BANDS:
        if band := [each for each in found if low <= each.things <= high and not each.cut]:
            rows.append(row(f"{low} to {high}", band))
    rows.append(row(f"more than {FEWER}, {FEWER} allowed", [each for each in found if each.cut]))
    report.add("points", rows)


if __name__ == "__main__":
    main()
