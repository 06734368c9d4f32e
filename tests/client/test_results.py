"""Answers as pictures, in notebooks and in other tools' formats."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from referent.client.results import Grounding
from referent.core.api import EXAMPLE
from tests.support.answers import box_answer, points_answer
from tests.support.coco import average_precision

RESULTS = [
    box_answer("a", (1, 2, 5, 10), 0.9, True),
    box_answer("b", (0, 0, 9, 9), 0.1, False),
    box_answer("<c>", (2, 2, 4, 4), 0.8, True),
]
POINTS = [points_answer("a", (5, 6), (20, 10), score=0.7), points_answer("b")]
PICTURE = Image.new("RGB", (100, 100), "white")


def grounding(**changes: object) -> Grounding:
    return Grounding.model_validate({**EXAMPLE, "results": RESULTS, **changes})


def without_scores() -> Grounding:
    return grounding(results=[box_answer(answer.expression, answer.box_xyxy) for answer in RESULTS])


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["file", "path", "bytes", "picture", "array"])
def test_plot_draws_on_whatever_was_asked_about(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "white.png"
    file.write_bytes(png(PICTURE))
    sources = {"file": file, "path": str(file), "bytes": png(PICTURE), "picture": PICTURE, "array": np.array(PICTURE)}
    drawn = grounding().of(sources[kind]).plot()
    assert drawn.size == PICTURE.size
    assert drawn.getpixel((1, 8)) != (255, 255, 255)
    assert drawn.getpixel((90, 90)) == (255, 255, 255)


def test_points_are_drawn_and_several_of_them() -> None:
    drawn = grounding(results=POINTS).of(PICTURE).plot()
    assert all(drawn.getpixel(point) != (255, 255, 255) for point in ((5, 6), (20, 10)))
    assert drawn.getpixel((90, 90)) == (255, 255, 255)


def test_points_become_key_points_and_cocos_results() -> None:
    answer = grounding(results=POINTS)
    found = answer.to_supervision()
    np.testing.assert_array_equal(found.xy, [[[5, 6]], [[20, 10]]])
    np.testing.assert_array_equal(found.class_id, [0, 0])
    rows = answer.to_coco(7)
    assert [row["keypoints"] for row in rows] == [[5, 6, 2], [20, 10, 2]]
    assert [(row["image_id"], row["category_id"], row["score"]) for row in rows] == [(7, 1, 0.7)] * 2


def test_plot_needs_an_image() -> None:
    with pytest.raises(ValueError, match="no image"):
        grounding().plot()
    by_url = grounding().of("https://images.example.org/a.png")
    with pytest.raises(ValueError, match="given by URL"):
        by_url.plot()
    assert by_url.plot(PICTURE).size == PICTURE.size


def test_supervision_gets_what_is_there() -> None:
    found = grounding().to_supervision()
    np.testing.assert_array_equal(found.xyxy, [[1, 2, 5, 10], [2, 2, 4, 4]])
    np.testing.assert_allclose(found.confidence, [0.9, 0.8])
    assert (found.class_id.tolist(), found.data["class_name"].tolist()) == ([0, 2], ["a", "<c>"])
    assert without_scores().to_supervision().confidence is None
    assert len(grounding(results=RESULTS[1:2]).to_supervision()) == 0


def test_supervision_holds_boxes_or_points() -> None:
    with pytest.raises(ValueError, match="boxes and points: ask for them in two questions"):
        grounding(results=[*RESULTS, *POINTS]).to_supervision()


def test_without_supervision_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match="pip install supervision"):
        grounding().to_supervision()


@pytest.mark.parametrize("kind", ["bbox", "keypoints"])
def test_coco_results_are_judged_by_pycocotools(tmp_path: Path, kind: str) -> None:
    answer = grounding(results=[*RESULTS, points_answer("dots", (5, 6), (20, 10), score=0.7)])
    rows = [row for row in answer.to_coco(7) if kind in row]
    assert len(rows) == 2
    truth = [
        {"id": 1 + n, "iscrowd": 0, "area": 32.0, "bbox": [1, 2, 4, 8], "num_keypoints": 1} | row
        for n, row in enumerate(rows)
    ]
    categories = [{"id": 1 + n, "name": str(n)} for n in range(4)]
    content = {"images": [{"id": 7, "width": 100, "height": 80}], "annotations": truth, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    assert average_precision(COCO(str(tmp_path / "truth.json")), rows, kind) == pytest.approx(1)


def test_a_row_of_coco_has_what_is_there() -> None:
    assert grounding().to_coco(7)[0] == {
        "image_id": 7, "category_id": 1, "bbox": [1, 2, 4, 8], "score": 0.9, "expression": "a",
    }  # fmt: skip
    assert "score" not in without_scores().to_coco(7)[0]


def test_pictures_of_one_data_set_share_its_categories() -> None:
    categories: dict[str, int] = {}
    first = grounding().to_coco(1, categories)
    second = grounding(results=[RESULTS[2], RESULTS[0], RESULTS[2]]).to_coco(2, categories)
    assert categories == {"a": 1, "b": 2, "<c>": 3}
    assert [row["category_id"] for row in first + second] == [1, 3, 3, 1, 3]


def test_a_notebook_shows_picture_and_results() -> None:
    answer = grounding().of(PICTURE)
    with Image.open(io.BytesIO(answer._repr_png_() or b"")) as shown:
        assert shown.size == PICTURE.size
    html = answer._repr_html_()
    assert html.startswith('<img src="data:image/png;base64,')
    assert "<td>&lt;c&gt;</td>" in html
    assert "<img" not in grounding().of("https://images.example.org/a.png")._repr_html_()


def test_json_is_the_service_s_own() -> None:
    answer = grounding().of(PICTURE, 12.5)
    assert set(json.loads(answer.model_dump_json())) == set(EXAMPLE)
    assert answer.elapsed_ms == 12.5
