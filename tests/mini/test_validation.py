import numpy as np
from PIL import Image

from referent.core.answers import Answer
from referent.data.expressions import Expression
from referent.mini.sets import Example
from referent.mini.validation import evaluate
from tests.support.answers import box_answer
from tests.support.scored import BOX, FAR, HALF

NAN = float("nan")


def test_figures_are_those_that_the_predictions_of_a_file_would_get() -> None:
    class Model:
        def ground(self, image: Image.Image, expressions: list[str]) -> list[Answer]:
            return [box_answer(e, HALF, 0.9 if e == "cup" else 0.2) for e in expressions]

    expressions = [
        Expression("name", "cup", (0,)),
        Expression("position", "left cup", (0,)),
        Expression("absent", "dog", ()),
    ]
    boxes = np.array([BOX, FAR, [NAN] * 4])
    figures = evaluate(Model(), [Example(Image.new("RGB", (100, 100)), expressions, boxes, ["cup"])])
    assert (figures["n"], figures["mean_iou"]) == (2, 0.25)
    assert figures["acc@0.5 by kind"] == {"name": 1, "position": 0}
    assert figures["auroc"] == 0.75
