from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from referent.core.answers import Answer, Referent
from referent.data.readers import read
from referent.data.records import Mask, Record
from referent.evaluation.analysis import analyse
from referent.evaluation.evaluate import (
    groups,
    join,
    mask_figures,
    mask_groups,
    point_figures,
    score_figures,
    several_figures,
    summary,
)
from referent.evaluation.predictions import Prediction, PredictionsError, prediction_of, read_predictions
from referent.evaluation.tables import tables
from tests.support.scored import BOX, FAR, HALF, record, results

NAN = float("nan")


def test_missing_and_invalid_predictions_are_counted_and_are_misses() -> None:
    rows = (BOX, HALF, None, (NAN,) * 4, (30, 30, 10, 10))
    pairs = [(record(str(i)), {"box_xyxy": box}) for i, box in enumerate(rows)]
    figures = summary(results(*pairs, (record("missing"), None)))
    assert (figures["n"], figures["valid"], figures["invalid"], figures["missing"]) == (6, 2, 3, 1)
    assert figures["mean_iou"] == pytest.approx(1.5 / 6)
    assert figures["acc@0.5"] == pytest.approx(2 / 6)


def test_coordinate_errors_are_in_shares_of_the_image() -> None:
    figures = summary(results((record("a", width=200), {"box_xyxy": HALF})))
    # centre x is off by 5 / 200, width by 10 / 200
    assert figures["mae"] == pytest.approx((0.025 + 0.05) / 4)
    assert figures["rmse"] == pytest.approx(((0.025**2 + 0.05**2) / 4) ** 0.5)


def test_baselines_ignore_what_is_predicted() -> None:
    centre, whole = (30.0, 30.0, 70.0, 70.0), (0.0, 0.0, 100.0, 100.0)
    figures = summary(results((record("a", centre), None), (record("b", whole), None)))
    assert figures["baselines"]["centre box"] == {"mean_iou": pytest.approx((1 + 0.16) / 2), "acc@0.5": 0.5}
    assert figures["baselines"]["whole image"] == {"mean_iou": pytest.approx((1 + 0.16) / 2), "acc@0.5": 0.5}


def test_groups_add_up_to_the_whole() -> None:
    pairs = [
        (record(str(i), tags={"kind": "name"} if i % 3 else {}), {"box_xyxy": HALF} if i else None) for i in range(7)
    ]
    found = results(*pairs)
    by_kind = groups(found)["kind"]
    assert {kind: row["n"] for kind, row in by_kind.items()} == {"name": 4, "(none)": 3}
    weighted = sum(row["n"] * row["mean_iou"] for row in by_kind.values()) / 7
    assert weighted == pytest.approx(summary(found)["mean_iou"])
    assert summary(found)["acc@0.5 by kind"] == {"(none)": pytest.approx(2 / 3), "name": 1}


@pytest.mark.parametrize(("values", "in_summary", "in_groups"), [(1, 0, 1), (20, 1, 1), (21, 0, 1), (301, 0, 0)])
def test_tags_of_many_values_are_no_groups(values: int, in_summary: bool, in_groups: bool) -> None:
    found = results(*((record(str(i), tags={"label": str(i)}), {"box_xyxy": BOX}) for i in range(values)))
    assert ("acc@0.5 by label" in summary(found), "label" in groups(found)) == (in_summary, in_groups)


def test_absent_objects_count_for_scores_and_not_for_boxes() -> None:
    found = results(
        (record("a"), {"box_xyxy": BOX, "score": 0.9}),
        (record("b"), {"box_xyxy": FAR, "score": 0.3}),
        (record("c", None), {"box_xyxy": FAR, "score": 0.5}),
        (record("d", None), {"box_xyxy": FAR, "score": 0.1}),
    )
    figures = summary(found)
    assert (figures["n"], figures["acc@0.5"], figures["auroc"]) == (2, 0.5, 0.75)
    scores = score_figures(found)
    assert (scores["n"], scores["auroc of acc@0.5"]) == (4, 1)
    # each bin has one row: gaps .1, .3, .5 and .1
    assert scores["ece"] == pytest.approx(0.25)


def test_a_missing_score_is_wrong_whether_present_or_absent() -> None:
    pairs = [(record("a"), {"box_xyxy": BOX, "score": 0.9}), (record("b", None), {"box_xyxy": FAR, "score": 0.1})]
    assert summary(results(*pairs))["auroc"] == 1
    assert summary(results(*pairs, (record("c"), None)))["auroc"] == 0.5
    assert summary(results(*pairs, (record("c", None), None)))["auroc"] == 0.5


def test_records_of_a_mask_alone_are_judged_by_its_box() -> None:
    pixels = np.zeros((100, 100), np.uint8)
    pixels[10:30, 10:30] = 1
    mask = _mask(pixels)
    found = results(
        (record("box", None, mask=mask), {"box_xyxy": HALF}),
        (record("mask", None, mask=mask), {"mask": mask}),
        (record("both", BOX, mask=mask), {"box_xyxy": None}),
    )
    assert found.ious.tolist() == [0.5, 1, 0]
    figures = mask_figures(found)
    assert (figures["n"], figures["mean_iou"], figures["true box"]) == (3, 0.5, 1)


def test_masks_are_judged_by_class_too() -> None:
    pixels = np.zeros((100, 100), np.uint8)
    pixels[10:30, 10:30] = 1
    mask = _mask(pixels)
    found = results(
        (record("right", BOX, mask=mask, tags={"class": "cup"}), {"box_xyxy": BOX}),
        (record("missed", BOX, mask=mask, tags={"class": "plate"}), None),
        (record("half", BOX, mask=mask, tags={"class": "plate"}), {"mask": mask}),
        (record("no mask", BOX, tags={"class": "plate"}), {"box_xyxy": BOX}),
    )
    by_class = mask_groups(found)["class"]
    assert {name: (row["n"], row["mean_iou"]) for name, row in by_class.items()} == {"cup": (1, 1), "plate": (2, 0.5)}
    assert mask_groups(results((record("a", BOX), None))) == {}


def test_points_are_the_predicted_ones_or_a_box_centre() -> None:
    found = results(
        (record("a", None, points=((20, 20),)), {"points": ((20, 21),)}),
        (record("b", None, points=((20, 20),)), {"box_xyxy": BOX}),
        (record("c", None, points=((20, 20),)), None),
    )
    figures = point_figures(found)
    assert (figures["n"], figures["distance_px"]) == (3, 0.5)
    assert figures["success"] == pytest.approx(2 / 3)
    assert point_figures(results((record("a"), {"box_xyxy": BOX}))) == {}


def test_every_box_points_at_its_centre_and_no_guess_does() -> None:
    three = ((10, 10, 30, 30), (40, 40, 60, 60), (70, 70, 90, 90))
    found = results(
        (record("a", None, points=((20, 20), (50, 50), (80, 80))), {"boxes_xyxy": three, "box_xyxy": three[0]}),
        (record("b", None), {"box_xyxy": BOX, "boxes_xyxy": ()}),
    )
    figures = point_figures(found)
    assert (figures["predicted"], figures["f1"], figures["n_acc"], figures["parse_rate"]) == (3, 1, 1, 1)


@pytest.mark.parametrize(
    ("prediction", "read"),
    [
        ({"points": ()}, True),
        ({"boxes_xyxy": ()}, True),
        ({"points": None}, False),
        ({"box_xyxy": None}, False),
        ({"error": "no image"}, False),
        (None, False),
    ],
)
def test_the_parse_rate_counts_what_could_be_read(prediction: dict | None, read: bool) -> None:
    found = results((record("a", None, points=((20, 20),)), prediction), (record("b", None), {"points": ()}))
    assert point_figures(found)["parse_rate"] == (1 if read else 0.5)


def test_answers_that_were_cut_are_counted() -> None:
    rows = ({"points": ((20, 20),), "finish_reason": reason} for reason in ("length", "stop", None))
    found = results(*((record(str(i), None, points=((20, 20),)), row) for i, row in enumerate(rows)))
    assert point_figures(found)["cut"] == 1


def test_points_for_what_is_absent_are_no_good_answer_about_boxes() -> None:
    pointed, absent = (record("a", None, points=((20, 20),)), {"points": ((20, 20),)}), record("b", None)
    assert several_figures(results(pointed, (absent, {"points": ((1, 1),)}))) == {}
    two = record("c", None, boxes_xyxy=(BOX, (40, 40, 60, 60)))
    figures = several_figures(results((two, {"boxes_xyxy": two.boxes_xyxy}), (absent, {"points": ((1, 1),)})))
    assert (figures["n_acc"], figures["pr@f1=1"]) == (0, 0.5)


@pytest.mark.parametrize(
    ("ids", "predicted", "message"),
    [
        (
            ["a", "b"],
            ["1", "2"],
            "no prediction is for any of the records: its ids are such as '1', theirs such as 'a'",
        ),
        (["a"], ["a", "a"], "two predictions have the id 'a'"),
        (["a", "a"], ["a"], "2 records have the id 'a'"),
        ([], ["a"], "no records"),
    ],
    ids=["other ids", "twice predicted", "twice a record", "no record"],
)
def test_what_cannot_be_joined_is_told(ids: list[str], predicted: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join(map(record, ids), [Prediction(id=id, box_xyxy=None) for id in predicted])
    assert issubclass(PredictionsError, ValueError)


def test_a_mask_of_another_size_than_its_image_is_told() -> None:
    found = Prediction(id="a", mask=_mask(np.ones((100, 99), np.uint8)))
    with pytest.raises(PredictionsError, match=r"the mask of 'a' has size \[100, 99\], its image \[100, 100\]"):
        join([record("a")], [found])


def test_gseval_predictions_are_scored_overall_and_by_class(data_folder: Path) -> None:
    rows = list(read("gseval", data_folder / "formats/gseval/GroundingSuite-Eval.jsonl"))
    records = [row for row in rows if isinstance(row, Record)]
    predictions = read_predictions(data_folder / "formats/gseval/claude_predictions.jsonl")
    found = join(records, predictions)
    figures, classes = summary(found), groups(found)["class_id"]
    assert len(records) == len(rows) == figures["n"] == 3715
    assert (figures["invalid"], figures["missing"]) == (280, 0)
    assert {name: row["n"] for name, row in classes.items()} == {"1": 1011, "2": 455, "3": 769, "4": 1480}
    for key in ("mean_iou", "acc@0.1", "acc@0.5", "acc@0.9"):
        assert sum(row["n"] * row[key] for row in classes.values()) / 3715 == pytest.approx(figures[key])
    # by hand, from the files: boxes of IoU >= .5 over all rows
    hits = sum(_iou(p.box_xyxy, r.box_xyxy) >= 0.5 for p, r in zip(predictions, records, strict=True) if p.box_xyxy)
    assert figures["acc@0.5"] == pytest.approx(hits / 3715)
    masks, by_class = mask_figures(found), mask_groups(found)["class_id"]
    assert masks["n"] == 3715
    assert {name: row["n"] for name, row in by_class.items()} == {"1": 1011, "2": 455, "3": 769, "4": 1480}
    assert sum(row["n"] * row["mean_iou"] for row in by_class.values()) / 3715 == pytest.approx(masks["mean_iou"])


def _iou(a: tuple, b: tuple) -> float:
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (sum(areas) - width * height)


def _mask(pixels: np.ndarray) -> Mask:
    encoded = coco_mask.encode(np.asfortranarray(pixels))
    return Mask(size=tuple(encoded["size"]), counts=encoded["counts"].decode())


def test_several_and_none_are_judged_by_all_their_boxes() -> None:
    left, right, beside = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)

    def expressed(id: str, *boxes: tuple[int, ...]) -> Record:
        one = {"box_xyxy": boxes[0]} if len(boxes) == 1 else {"boxes_xyxy": boxes or None}
        return Record(id=id, image="a.png", width=100, height=100, expression=id, **one)

    records = [expressed("both", left, right), expressed("one", left), expressed("none"), expressed("nothing")]
    answers = {
        "both": [right, left], "one": [left, beside], "none": [], "nothing": [beside],
    }  # fmt: skip
    predictions = [
        prediction_of(
            name,
            Answer.of(name, [Referent.of_box(name, np.array(b), (100, 100), 0.9, True) for b in boxes], present=None),
        )
        for name, boxes in answers.items()
    ]
    figures = analyse(join(records, predictions))
    assert figures["several"]["pr@f1=1"] == 2 / 4
    assert (figures["several"]["n_acc"], figures["several"]["f1"]) == (1 / 2, 6 / 8)
    assert figures["summary"]["several"]["count_error"] == 2 / 4
    assert figures["several"]["by referents"]["2"]["f1"] == 1
    assert figures["summary"]["n"] == 1  # one box alone is judged as one
    names = [table.title for table in tables(figures)]
    assert names.index("All referents, by their number") < 4
