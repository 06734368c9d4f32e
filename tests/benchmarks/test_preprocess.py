from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.preprocess import KINDS, Comparison, encoded, made_of, photographs

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.mark.parametrize("kind", KINDS)
def test_image_is_made_in_the_size_that_is_asked_for(kind: str) -> None:
    image = made_of(photographs(SAMPLES), kind, (700, 500))
    assert (image.mode, image.size) == ("RGB", (700, 500))
    corner = np.asarray(image)[-40:, -40:]
    assert corner.std() > 0 or corner.mean() > 0  # filled to the last corner


def test_without_photographs_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --photos"):
        photographs(tmp_path)


def test_ours_is_clips_own_where_nothing_is_decoded_smaller() -> None:
    picture = Image.open(sorted(SAMPLES.glob("*.jpg"))[0]).convert("RGB").resize((500, 400))
    assert Comparison().differences(encoded(picture, "PNG")).max() == 0
