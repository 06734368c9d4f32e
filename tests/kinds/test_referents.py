"""How the slots of a referent head become answers of the service."""

import numpy as np
import pytest

from referent.core.kind import Options, Prepared
from referent.core.packing import Bucket
from referent.core.spec import ModelSpec
from referent.core.transform import ImageTransform
from referent.kinds.referents import Referents
from tests.support.tiny import TINY_PROMPT

SPEC = ModelSpec(
    kind="referents", image=ImageTransform(size=100), image_tokens=4, box_frame="transformed", prompt=TINY_PROMPT,
    buckets=(Bucket(64, 4),), present_threshold=0.5, referent_threshold=0.3,
)  # fmt: skip
PADDING = (0.5, 0.1, 0.2, 0.1)  # above a picture of 200x100 in its square
PICTURE = [(0.2, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2)]


@pytest.mark.parametrize(("limit", "found"), [(1, 1), (2, 2), (3, 2), (None, 2)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_box_in_the_padding_takes_no_place_of_the_limit(place: int, limit: int | None, found: int) -> None:
    boxes = [*PICTURE[:place], PADDING, *PICTURE[place:]]
    inferences = [{"loc_positions": np.array([[9]])}]
    prepared = Prepared(["the cup"], SPEC.image.frame((200, 100)), inferences, Options(limit))
    outputs = {
        "boxes": np.array([[boxes]]), "scores": np.array([[[0.9, 0.8, 0.7]]]), "presence": np.array([[0.9]]),
    }  # fmt: skip
    [answer] = Referents().answers(SPEC, prepared, [outputs])
    assert [referent.box_xyxy for referent in answer.referents] == [
        pytest.approx(box) for box in [(20, 30, 60, 70), (140, 30, 180, 70)][:found]
    ]
