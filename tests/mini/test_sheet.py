import numpy as np

from referent.mini.artwork import TRAIN_STYLES
from referent.mini.icons import Materials
from referent.mini.scenes import CLASSES
from referent.mini.sheet import COLUMNS, SIDE, sheet


def test_a_sheet_is_the_same_for_a_seed_and_full_of_scenes() -> None:
    icons = {name: np.full((40, 40, 4), (200, 30, 30, 255), np.uint8) for name in CLASSES[:8]}
    made = Materials(dict.fromkeys(TRAIN_STYLES, icons), [], [])
    page = sheet(made, "1", rows=1)
    assert page.tobytes() == sheet(made, "1", rows=1).tobytes() != sheet(made, "2", rows=1).tobytes()
    for column in range(COLUMNS):
        assert len(page.crop((column * SIDE, 0, (column + 1) * SIDE, SIDE)).getcolors(SIDE**2)) > 2
