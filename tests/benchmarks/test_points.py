import numpy as np
import pytest
from PIL import Image

from benchmarks.points import PointedPicture, outcome, row
from referent.core.answers import Answer, Referent
from referent.core.grammar import PointGrammar

BOXES = [(0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (5.0, 0.0, 15.0, 10.0)]


def answer(points: list[tuple[float, float]], text: str, reason: str = "stop") -> Answer:
    referents = [Referent.of_point("x", np.array(point), (100, 100), 0.5, True) for point in points]
    return Answer.of("x", referents, present=bool(points), text=text, finish_reason=reason)


@pytest.mark.parametrize(
    ("points", "right"),
    [([(2, 5), (25, 5)], 2), ([(2, 5), (3, 5)], 1), ([(7, 5), (2, 5)], 2), ([(50, 50)], 0), ([], 0)],
    ids=["both", "twice the same", "a shared place", "beside", "none"],
)
def test_points_and_things_are_matched_one_to_one(points: list[tuple[float, float]], right: int) -> None:
    case = PointedPicture(Image.new("RGB", (100, 100)), BOXES, "the x", 30)
    found = outcome(case, answer(points, "none"))
    assert (found.points, found.right, found.things) == (len(points), right, 3)


@pytest.mark.parametrize("points", [[], [(0.1, 0.2)], [(0.1, 0.2), (0.3, 0.4), (1, 1)]], ids=len)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_a_list_that_is_not_closed_is_not_whole(points: list[tuple[float, float]], cut: bool) -> None:
    text = PointGrammar(decimals=1, none=True).write(points, 'the <x> & "y"')
    case = PointedPicture(Image.new("RGB", (100, 100)), BOXES, "the x", 2)
    found = outcome(case, answer([], text[:-3] if cut else text, "length"))
    assert found.whole is not cut
    figures = row("all", [found])
    assert (figures["whole"], figures["cut"], figures["F1"]) == (int(not cut), 1, 0)
